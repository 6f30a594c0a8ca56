# shellcheck shell=bash
# What the tests beside this file share. Sourced, never run.

# check WHAT COMMAND...: the command succeeds.
check() {
    local what=$1
    shift
    if "$@" >/tmp/check 2>&1; then
        echo "  ok: $what"
    else
        echo "  FAILED: $what ($*)"
        sed 's/^/    /' /tmp/check
        # shellcheck disable=SC2034 # read by who sources this
        failed=1
        return 1
    fi
}

# same WHAT EXPECTED FOUND
same() {
    check "$1: $2" test "$2" = "$3" || echo "    found: $3"
}

# within SECONDS COMMAND...: it succeeds within that time, tried again and again.
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || return 1
        sleep 0.02
    done
}
