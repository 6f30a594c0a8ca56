//! `init`, `invite`, `join`: how a site comes to be, and how two get to know each other.
//!
//! An invitation is a piece of a site's file, so that people can read it, correct it and keep it, between two lines that say what it is. It holds no
//! secret; whoever passes it on must not be able to change it.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use patronus_config::value::{HostAddress, InterfaceName, Network};
use patronus_config::{Config, key_file};
use serde::Deserialize;
use serde_json::json;

use crate::keys;
use crate::options::{Init, Invite, Join};
use crate::output::{Outcome, Output, Wrong};

const BEGIN: &str = "# ----- begin of a Patronus invitation -----";
const END: &str = "# ----- end of a Patronus invitation -----";
/// Bytes of an invitation at most.
const INVITATION_MAX: u64 = 64 << 10;

/// `patronus init`.
pub fn init(output: Output, options: Init) -> Outcome {
    let (file, key_file) = (options.dir.join("site.toml"), options.dir.join("site.key"));
    must_be_new(&file)?;
    must_be_new(&key_file)?;
    let links = match (options.no_links, options.links.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) if std::io::stdin().is_terminal() => ask_for_links()?,
        _ => options.links,
    };
    let text = site(&links, options.listen_port, &options.addresses)?;
    make_folder(&options.dir)?;
    let key = keys::private()?;
    keys::write(&key_file, &key)?;
    keys::let_control_in(&key_file)?;
    create(&file, &text)?;
    let public = keys::public(&key);
    let said = format!(
        "wrote {} and {}\npublic key: {public}\nnext: `patronus invite` here, and `patronus join` at the other site\n",
        file.display(),
        key_file.display()
    );
    output.print(
        &json!({ "file": file, "key_file": key_file, "public_key": public }),
        said,
    )
}

/// Refuses to write over what is there.
pub fn must_be_new(path: &Path) -> Result<(), Wrong> {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) => Err(Wrong::failed(format!("{} is there already", path.display()))),
    }
}

/// Makes a folder for a site's file.
pub fn make_folder(path: &Path) -> Result<(), Wrong> {
    let mut folder = fs::DirBuilder::new();
    let made = folder.recursive(true).mode(0o755).create(path);
    made.map_err(|error| Wrong::failed(format!("{}: {error}", path.display())))
}

/// The text of a new site's file.
fn site(links: &[String], listen_port: u16, addresses: &[HostAddress]) -> Result<String, Wrong> {
    let mut text = format!(
        "# A Patronus site. Every key: docs/config.md; what is wrong with it: `patronus check`.\n\n\
         [site]\nprivate_key_file = \"site.key\"\nlisten_port = {listen_port}\n"
    );
    if !addresses.is_empty() {
        let addresses: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
        let _ = write!(text, "addresses = [{}]\nroutes = true\n", addresses.join(", "));
    }
    for (link, id) in links.iter().zip(1..) {
        if id > 15 {
            return Err(Wrong::failed("at most 15 links are possible"));
        }
        let name: InterfaceName = link
            .parse()
            .map_err(|error| Wrong::failed(format!("--link {link}: {error}")))?;
        let _ = write!(text, "\n[[link]]\nid = {id}\ninterface = \"{}\"\n", name.as_str());
    }
    patronus_config::parse(&text).map_err(|error| Wrong::config(&error))?;
    Ok(text)
}

/// Asks somebody at a terminal.
fn ask_for_links() -> Result<Vec<String>, Wrong> {
    let found = default_interfaces(&fs::read_to_string("/proc/net/route").unwrap_or_default());
    let proposed = found.join(" ");
    eprint!("Interfaces that lead to the internet, with spaces between [{proposed}]: ");
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Wrong::failed(error.to_string()))?;
    let typed: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Ok(if typed.is_empty() { found } else { typed })
}

/// The interfaces of default routes, in the table of proc(5).
fn default_interfaces(table: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [name, "00000000", _, _, _, _, _, "00000000", ..] = fields[..]
            && !names.iter().any(|known| known == name)
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// `patronus invite`.
pub fn invite(output: Output, options: &Invite) -> Outcome {
    let config = patronus_config::load(&options.site.file).map_err(|error| Wrong::config(&error))?;
    let networks = match options.networks.is_empty() {
        false => options.networks.clone(),
        true => networks_of(&config),
    };
    if networks.is_empty() {
        return Err(Wrong::failed("which networks are at this site?").hint("say so: --network 10.1.0.0/16"));
    }
    let key =
        key_file::read(&config.site.private_key_file).map_err(|error| Wrong::failed(error.to_string()))?;
    let kind = if options.peer || config.links.is_empty() {
        "peer"
    } else {
        "remote"
    };
    let text = invitation(kind, options, &keys::public(&key), &networks)?;
    output.print(&json!({ "invitation": text }), &text)
}

fn networks_of(config: &Config) -> Vec<Network> {
    let lans = config.lans.iter().flat_map(|lan| &lan.networks);
    lans.map(|network| *network.get_ref()).collect()
}

fn invitation(kind: &str, options: &Invite, key: &str, networks: &[Network]) -> Result<String, Wrong> {
    let mut text = format!(
        "{BEGIN}\n[[{kind}]]\nname = \"{}\"\npublic_key = \"{key}\"\n",
        options.name
    );
    if let Some(endpoint) = options.endpoint {
        let _ = writeln!(text, "endpoint = \"{endpoint}\"");
    }
    let networks: Vec<String> = networks.iter().map(|network| format!("\"{network}\"")).collect();
    let _ = writeln!(text, "allowed_ips = [{}]\n{END}", networks.join(", "));
    understand(&text)?;
    Ok(text)
}

/// What an invitation may hold, and nothing else: it comes from outside.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Invitation {
    #[serde(default)]
    peer: Vec<Party>,
    #[serde(default)]
    remote: Vec<Party>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Party {
    name: patronus_config::matching::Name,
    public_key: patronus_config::value::PublicKey,
    endpoint: Option<patronus_config::value::Endpoint>,
    allowed_ips: Vec<Network>,
}

/// The one site in an invitation, and whether it is a remote.
fn understand(text: &str) -> Result<(Party, bool), Wrong> {
    let wrong = |why: String| {
        Wrong::failed(format!("this is no invitation: {why}")).hint("`patronus invite` prints one")
    };
    let inside = text.split_once(BEGIN).map_or(text, |(_, rest)| rest);
    let inside = inside.split_once(END).map_or(inside, |(inside, _)| inside);
    let mut all: Invitation = toml::from_str(inside)
        .map_err(|error| wrong(patronus_config::Error::of_toml(inside, &error).to_string()))?;
    match (
        all.peer.pop(),
        all.remote.pop(),
        all.peer.len() + all.remote.len(),
    ) {
        (Some(party), None, 0) => Ok((party, false)),
        (None, Some(party), 0) => Ok((party, true)),
        _ => Err(wrong("it names not exactly one site".to_owned())),
    }
}

/// `patronus join`.
pub fn join(output: Output, options: &Join) -> Outcome {
    let (party, is_remote) = understand(&read(&options.invitation)?)?;
    let file = &options.site.file;
    let before = patronus_config::read(file).map_err(|error| Wrong::config(&error))?;
    let config = patronus_config::parse_file(file, &before).map_err(|error| Wrong::config(&error))?;
    if config
        .peers
        .iter()
        .any(|peer| *peer.public_key.get_ref() == party.public_key)
    {
        return Err(
            Wrong::failed(format!("{}: that key is there already", file.display()))
                .hint("change its entry by hand, or remove it first"),
        );
    }
    let after = format!(
        "{}\n{}",
        before.trim_end_matches('\n').to_owned() + "\n",
        entry(&party, is_remote)
    );
    patronus_config::parse_file(file, &after).map_err(|error| Wrong::config(&error))?;
    replace(file, &after)?;
    let name = party.name.as_str();
    let said = format!(
        "added {name} to {}\nnext: `patronus apply`, if the site runs\n",
        file.display()
    );
    output.print(&json!({ "file": file, "added": name }), said)
}

fn entry(party: &Party, is_remote: bool) -> String {
    let kind = if is_remote { "remote" } else { "peer" };
    let (name, key) = (party.name.as_str(), party.public_key);
    let mut text = format!("[[{kind}]]\nname = \"{name}\"\npublic_key = \"{key}\"\n");
    if let Some(endpoint) = party.endpoint {
        let _ = writeln!(text, "endpoint = \"{}\"", endpoint.0);
    }
    let networks: Vec<String> = party
        .allowed_ips
        .iter()
        .map(|network| format!("\"{network}\""))
        .collect();
    let _ = writeln!(text, "allowed_ips = [{}]", networks.join(", "));
    // So that a NAT on the way keeps its state, as remotes do by themselves.
    if !is_remote {
        text.push_str("keepalive = \"25s\"\n");
    }
    text
}

fn read(path: &Path) -> Result<String, Wrong> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(INVITATION_MAX).read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(INVITATION_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| Wrong::failed(format!("{}: {error}", path.display())))?;
    Ok(text)
}

/// Writes a file that must not be there yet.
pub fn create(path: &Path, text: &str) -> Result<(), Wrong> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o644).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| Wrong::failed(format!("{}: {error}", path.display())))
}

/// Replaces a file as a whole: whoever reads it meanwhile sees the old one or the new one. Owner and mode stay.
fn replace(path: &Path, text: &str) -> Result<(), Wrong> {
    let wrong = |error: std::io::Error| Wrong::failed(format!("{}: {error}", path.display()));
    let before = fs::metadata(path).map_err(wrong)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    create(beside, text)?;
    let mode = PermissionsExt::from_mode(before.mode() & 0o7777);
    let replaced = fs::set_permissions(beside, mode)
        .and_then(|()| std::os::unix::fs::chown(beside, Some(before.uid()), Some(before.gid())))
        .and_then(|()| fs::rename(beside, path));
    replaced.map_err(|error| {
        let _ = fs::remove_file(beside);
        wrong(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    #[test]
    fn an_invitation_is_one_site_and_nothing_else() {
        let good = format!(
            "hello\n{BEGIN}\n[[remote]]\nname = 'hub'\npublic_key = '{KEY}'\nallowed_ips = ['10.0.0.0/8']\n{END}\nbye"
        );
        let (party, is_remote) = understand(&good).expect("an invitation");
        assert!(is_remote);
        assert_eq!(party.name.as_str(), "hub");
        let with = |more: &str| good.replace("allowed_ips", &format!("{more}\nallowed_ips"));
        for bad in ["preshared_key_file = '/etc/shadow'", "[site]", &good] {
            understand(&with(bad)).err().expect("no invitation");
        }
        understand("").err().expect("nothing");
        let misspelt = good.replace("'hub'", "'a b'");
        let said = understand(&misspelt).err().expect("no name").failure.to_string();
        assert!(said.contains("did you mean"), "{said}");
        assert!(!said.contains('\u{1f}'), "{said:?}");
    }

    #[test]
    fn what_is_joined_is_what_was_invited() {
        let text = format!(
            "[[peer]]\nname = 'a-b'\npublic_key = '{KEY}'\nendpoint = '[2001:db8::1]:7'\nallowed_ips = ['fd00::/8', '10.0.0.0/8']"
        );
        let (party, is_remote) = understand(&text).expect("an invitation");
        let (again, _) =
            understand(&entry(&party, is_remote).replace("keepalive = \"25s\"\n", "")).expect("the same");
        assert_eq!(again.endpoint, party.endpoint);
        assert_eq!(again.allowed_ips, party.allowed_ips);
        assert_eq!(again.public_key, party.public_key);
    }

    #[test]
    fn interfaces_with_default_routes_are_found() {
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                     eth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\n\
                     eth0 0002A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
                     wwan0 00000000 0102A8C0 0003 0 0 5 00000000 0 0 0\n\
                     eth0 00000000 0102A8C0 0003 0 0 9 00000000 0 0 0\n";
        assert_eq!(default_interfaces(table), ["eth0", "wwan0"]);
    }

    #[test]
    fn a_new_site_is_right() {
        let text = site(
            &["eth0".to_owned(), "wwan0".to_owned()],
            51820,
            &["10.1.0.1/24".parse().expect("one")],
        )
        .expect("a site");
        let config = patronus_config::parse(&text).expect("right");
        assert_eq!(config.links.len(), 2);
        site(&["no/where".to_owned()], 51820, &[]).expect_err("no interface");
        site(&vec!["eth0".to_owned(); 16], 1, &[]).expect_err("too many");
    }
}
