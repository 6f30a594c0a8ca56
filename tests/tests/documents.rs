//! Documents for people: what they say to type is typed, and what they say is printed is compared.

use patronus_tests::{Need, Terminal, Transcript, cable, may_run};
use std::path::PathBuf;

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("patronus-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Two machines on one network, as the documents have them.
fn play(document: &str) {
    if !may_run(&[Need::Root]) {
        return;
    }
    let name = document.trim_start_matches("docs/").trim_end_matches(".md");
    let folder = Folder::new(name);
    let mut hub = Terminal::open("hub", &folder.0).unwrap();
    let mut branch = Terminal::open("branch", &folder.0).unwrap();
    cable(&hub, "eth0", &branch, "eth0").unwrap();
    hub.expect("ip address add 198.51.100.1/24 dev eth0").unwrap();
    branch.expect("ip address add 198.51.100.2/24 dev eth0").unwrap();
    let mut transcript = Transcript::read(document).unwrap();
    let played = transcript.play(&mut [("hub", &mut hub), ("branch", &mut branch)]);
    if let Err(error) = played {
        panic!("{error}\n{}", hub.run("cat *.log").unwrap().0);
    }
}

#[test]
fn two_sites_in_ten_minutes() {
    play("docs/quickstart.md");
}

#[test]
fn the_command_line_prints_what_its_document_says() {
    play("docs/cli.md");
}

/// However what `up` has started ends, `down` leaves nothing behind, nor does a restart with another interface; the folder of the package stays.
#[test]
fn nothing_is_left_of_what_was_killed() {
    if !may_run(&[Need::Root]) {
        return;
    }
    let folder = Folder::new("left");
    let mut hub = Terminal::open("left", &folder.0).unwrap();
    let up = "patronus up 2> up.log & for i in $(seq 100); do patronus show | grep -q '^public key' && break; sleep 0.1; done";
    let left = "find /run/patronus /run/wireguard -name '*.sock'; ip -o link";
    hub.expect("patronus init --no-links").unwrap();
    hub.expect(&format!(
        "{up}; ip link show wg0 && kill -9 $! $(pgrep -P $!); patronus down"
    ))
    .unwrap();
    let (said, _) = hub.run(left).unwrap();
    assert!(!said.contains(".sock"), "{said}");
    assert!(!said.contains("POINTOPOINT"), "{said}");
    hub.expect("mkdir -m 1775 /run/patronus").unwrap();
    hub.expect(up).unwrap();
    hub.expect(
        r#"printf '\n[engine]\ninterface = "wg7"\n' >> /etc/patronus/site.toml; patronus apply --restart"#,
    )
    .unwrap();
    let (said, _) = hub.run(left).unwrap();
    assert_eq!(said.matches("POINTOPOINT").count(), 1, "{said}");
    hub.expect("patronus down").unwrap();
    let (said, _) = hub.run(left).unwrap();
    assert!(!said.contains("POINTOPOINT"), "{said}");
    hub.expect("rmdir /run/patronus").unwrap();
}
