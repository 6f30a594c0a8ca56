# shellcheck shell=bash
# What the scripts beside this file share. Sourced, never run.

# Build output and tools, outside the clone, so that the next clone finds them.
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/patronus
TOOLS=$CACHE/tools

# Programs of the administrator and of rustup are not on every user's path.
PATH=$PATH:$TOOLS/bin:$CACHE/peers/bin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/local/sbin:/usr/sbin:/sbin
export PATH
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CACHE/target}
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-auto}

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    warn "$@"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [[ $(id -u) == 0 ]]; }

# install PACKAGE...: Debian packages, as root.
install() {
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null 2>&1 && return
    "${apt[@]}" update >/dev/null && "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null
}

# need COMMAND=PACKAGE...: makes sure that the commands exist, or says in one sentence what is missing.
need() {
    local pair missing=()
    for pair in "$@"; do
        have "${pair%%=*}" || missing+=("${pair#*=}")
    done
    [[ -e /usr/include/stdio.h ]] || missing+=(libc6-dev)
    ((${#missing[@]})) || return 0
    if is_root && have apt-get; then
        install "${missing[@]}" || die "could not install ${missing[*]}: install them by hand"
    else
        die "please install ${missing[*]} first (Debian: apt-get install ${missing[*]}), or run this as root"
    fi
}

# need_rust COMPONENT...: a toolchain, with what is asked for beside the compiler.
need_rust() {
    local component
    have cargo || die "a Rust toolchain is needed (rustup, or cargo and rustc of the version in Cargo.toml)"
    for component in "$@"; do
        cargo "$component" --version >/dev/null 2>&1 ||
            die "cargo $component is missing: rustup component add ${component/fmt/rustfmt}"
    done
}

# locked_run SCRIPT ARGUMENT...: starts this script again, alone among all clones, which share one build
# folder. The lock is not inherited, so that nothing left behind can hold it.
locked_run() {
    mkdir -p "$CACHE"
    flock --nonblock --close "$CACHE/lock" true || say "waiting for another run of these scripts to end"
    PATRONUS_LOCKED=1 exec flock --close "$CACHE/lock" "$@"
}

# Empties the build folder once stale builds of old clones have filled it.
bound_target() {
    local mib
    [[ $CARGO_TARGET_DIR == "$CACHE"/* && -d $CARGO_TARGET_DIR ]] || return 0
    mib=$(du -sm "$CARGO_TARGET_DIR" | cut -f1)
    if ((mib > ${PATRONUS_TARGET_MIB:-20000})); then
        say "$CARGO_TARGET_DIR has grown to $mib MiB: starting it anew"
        rm -rf "$CARGO_TARGET_DIR"
    fi
}

# own_target: makes the shared build folder this clone's. cargo tells a workspace's own packages apart by name only, and takes what
# another clone built last for up to date when that is newer than the sources here. The dependencies stay: they are the same.
own_target() {
    local mark=$CARGO_TARGET_DIR/clone
    [[ $(cat "$mark" 2>/dev/null) == "$PWD" ]] && return
    [[ ! -d $CARGO_TARGET_DIR ]] || cargo clean --quiet --locked --workspace
    mkdir -p "$CARGO_TARGET_DIR"
    printf '%s\n' "$PWD" >"$mark"
}

# tool CRATE COMMAND: a cargo tool, built once into the cache.
tool() {
    have "$2" && return
    say "building $1, once, into $TOOLS"
    CARGO_TARGET_DIR=$CACHE/tools-target cargo install --quiet --locked --root "$TOOLS" "$1" || {
        warn "could not build $1"
        return 1
    }
    rm -rf "$CACHE/tools-target"
}

# in_sandbox COMMAND...: runs it in network, mount and process namespaces of its own. All that it makes there
# vanishes with it, however it ends. Without root, a user namespace gives the rights that this takes.
in_sandbox() {
    local flags=(--net --mount --pid --fork --kill-child --mount-proc) inside status=0
    if ! is_root; then
        flags=(--user --map-root-user "${flags[@]}")
        unshare "${flags[@]}" true 2>/dev/null ||
            die "this needs root, or a kernel that lets users make user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)"
        say "not root: using an unprivileged user namespace"
    fi
    [[ -c /dev/net/tun ]] || die "/dev/net/tun is missing: as root, modprobe tun"
    # A /run of its own keeps the names of namespaces and the sockets of daemons to itself. The shell stays as the
    # first process of its namespace: it takes in what daemons leave behind.
    # shellcheck disable=SC2016
    unshare "${flags[@]}" bash -c 'mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && "$@"; exit $?' \
        sandbox "$@" &
    inside=$!
    # unshare holds back SIGINT and SIGTERM; its death takes everything inside with it.
    # shellcheck disable=SC2064
    trap "kill -KILL $inside 2>/dev/null; exit 130" INT TERM HUP
    wait "$inside" || status=$?
    trap - INT TERM HUP
    return "$status"
}
