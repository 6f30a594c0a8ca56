//! A control that has been taken over: bytes at random in every place that it can write. Whatever they are, the engine neither ends nor hangs, and counts what it refuses.

use patronus_abi::blob::seal;
use patronus_abi::channel::{
    COMMAND_WORDS, Command, NextHop, PacketRecord, PathName, PathState, PathWhy, packet, place,
};
use patronus_abi::{Prefix, encode};
use patronus_engine::control::{Control, Refusals, User};
use patronus_link::{Event, Link};
use patronus_netns::Namespace;
use patronus_tests::{Controlled, Random, RawControl, eventually, may_run};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// One write of a hostile control.
struct Hostile<'a> {
    random: Random,
    /// A blob that is right, to be damaged.
    good: Vec<u8>,
    /// Descriptors to send: of a key, and of what is none.
    fds: [BorrowedFd<'a>; 3],
    tail: u64,
}

impl Hostile<'_> {
    /// Does something. False if the engine has ended the connection.
    fn act(&mut self, control: &RawControl) -> bool {
        match self.random.below(16) {
            // A word anywhere: in the ring, or where positions stand.
            0..=6 => {
                let word = self.random.next();
                control.word(8 * self.random.below(place::CONTROL_MAPPED / 8), word);
                true
            }
            7 => {
                let place = [place::COMMAND_TAIL, place::EVENT_HEAD][self.random.below(2)];
                let word = match self.random.below(3) {
                    0 => self.random.next(),
                    1 => self.random.below(10_000) as u64,
                    _ => self.tail.wrapping_add(self.random.below(10) as u64),
                };
                control.word(place, word);
                self.tail = if place == place::COMMAND_TAIL {
                    word
                } else {
                    self.tail
                };
                true
            }
            // Records that are commands, or nearly.
            8..=11 => {
                let mut words = self.command();
                if self.random.below(3) == 0 {
                    words[self.random.below(COMMAND_WORDS)] ^= 1 << self.random.below(64);
                }
                let slot = self.tail as usize & (place::COMMAND_COUNT - 1);
                for (at, word) in words.into_iter().enumerate() {
                    control.word(place::COMMANDS + 8 * (slot * COMMAND_WORDS + at), word);
                }
                self.tail = self.tail.wrapping_add(1);
                control.word(place::COMMAND_TAIL, self.tail);
                control.send(PacketRecord::of(packet::BELL).as_bytes(), &[])
            }
            // Most of what follows ends the connection, and another one takes its time.
            14 | 15 if self.random.below(8) > 0 => {
                control.send(PacketRecord::of(packet::BELL).as_bytes(), &[])
            }
            // A blob, damaged, mostly with a right check sum.
            12 | 13 => {
                let mut blob = self.good.clone();
                for _ in 0..self.random.below(4) {
                    let at = self.random.below(blob.len());
                    blob[at] = self.random.next() as u8;
                }
                if self.random.below(4) > 0 {
                    seal(&mut blob);
                }
                let slot = self.random.below(2) as u32;
                control.slot(slot as usize, &blob);
                let generation = self.random.below(3) as u64;
                control.publish(slot, generation, 1, &self.fds[..1])
            }
            14 => {
                let (slot, keys) = (self.random.below(3) as u32, self.random.below(4) as u32);
                let count = self.random.below(4);
                control.publish(slot, 1, keys, &self.fds[..count])
            }
            _ => {
                let mut bytes = [0; 40];
                bytes.fill_with(|| self.random.next() as u8);
                bytes[..4].copy_from_slice(&(self.random.below(5) as u32).to_le_bytes());
                let (len, count) = (self.random.below(41), self.random.below(4));
                // Nothing at all would be the end.
                control.send(&bytes[..len.max(1)], &self.fds[..count])
            }
        }
    }

    fn command(&mut self) -> [u64; COMMAND_WORDS] {
        let mut octets = [10, 67, 0, 0];
        octets[2] = self.random.next() as u8;
        let prefix = Prefix::new(Ipv4Addr::from(octets).into(), 16 + self.random.below(17) as u8).unwrap();
        let owner = self.random.below(3) as u16;
        let epoch = self.random.below(4) as u32;
        let command = match self.random.below(8) {
            0 => Command::Sweep { owner, epoch },
            1 | 2 => Command::RouteDel { prefix, owner },
            _ => Command::RouteAdd {
                prefix,
                owner,
                epoch,
                preference: self.random.below(3) as u32,
                hops: vec![
                    NextHop::Discard,
                    NextHop::Peer([self.random.next() as u8; 32]),
                    NextHop::Neighbour(self.random.below(4) as u16, prefix.addr()),
                ],
            },
        };
        command.words().expect("three next hops")
    }
}

const SITE: &str = "[[policy]]\ndst = '10.99.0.0/16'\naction = 'drop'\n[[peer]]\npublic_key = 'qQvW8tDqDzHbZ1gKkT1lV0Yk3kQ2b0q8m3Cq0uQ1xVs='\nallowed_ips = ['10.66.2.0/24']\n";

fn blob() -> Vec<u8> {
    let text = format!("[site]\nprivate_key_file = 'site.key'\n[engine]\ninterface = 'pn-hostile'\n{SITE}");
    let config = patronus_config::parse_file(std::path::Path::new("site.toml"), &text).expect("a site");
    encode(&config.compile(), 1).expect("a blob")
}

/// A million writes against the engine's end of the channel, without the rest of the engine.
#[test]
fn a_million_writes() {
    const WRITES: usize = 1_000_000;
    let folder = std::env::temp_dir().join(format!("patronus-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("engine.sock");
    let key = folder.join("key");
    std::fs::write(&key, "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=").unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (key, folder_fd) = (File::open(&key).unwrap(), File::open(&folder).unwrap());
    let null = File::open("/dev/null").unwrap();
    let (mut control, _segment) = Control::bind(&path, User::default(), [7; 16]).unwrap();
    let mut hostile = Hostile {
        random: Random::new(7),
        good: blob(),
        fds: [key.as_fd(), null.as_fd(), folder_fd.as_fd()],
        tail: 0,
    };
    let (mut raw, mut published, mut right, mut commands) = (None, 0, 0, 0);
    for _ in 0..WRITES {
        let attached = raw.take().unwrap_or_else(|| {
            hostile.tail = 0;
            attach(&path, &mut control)
        });
        let heard = hostile.act(&attached);
        control.service();
        if let Some(site) = control.take_published() {
            published += 1;
            match site.site {
                Ok(_) => {
                    right += 1;
                    control.applied(site.generation, site.content, 0, [0; 32]);
                }
                Err(reason) => control.refused(site.generation, reason),
            }
        }
        for _ in 0..64 {
            match control.take_command() {
                Some(Ok(_)) => commands += 1,
                Some(Err(why)) => control.refuse_command(why),
                None => break,
            }
        }
        control.tell_of_commands();
        if heard && control.is_attached() {
            attached.drain();
            raw = Some(attached);
        }
    }
    let refusals: Refusals = control.refusals();
    println!("{published} sites, {right} of them right, {commands} commands understood; {refusals:?}");
    assert!(right > 1000 && published > 2 * right && commands > 1000);
    for (name, count) in refusals.named() {
        let expected = !["strangers", "seconds", "sites"].contains(&name);
        assert!(count > 100 || !expected, "{name}: {count}");
    }
    let _ = std::fs::remove_dir_all(&folder);
}

/// However many peers come and go while control does not look, what it waits for finds a place.
#[test]
fn news_leave_room_for_answers() {
    let folder = std::env::temp_dir().join(format!("patronus-news-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("engine.sock");
    let (mut control, _segment) = Control::bind(&path, User::default(), [7; 16]).unwrap();
    let (mut link, _) = std::thread::scope(|scope| {
        let attaching = scope.spawn(|| Link::attach(&path).unwrap());
        while !control.is_attached() {
            control.service();
        }
        attaching.join().unwrap()
    });
    let session = |at| Event::Session {
        at,
        peer: [1; 32],
        lane: None,
        up: true,
    };
    let path_down = |at| Event::PathState {
        at,
        remote: [1; 32],
        path: PathName { local: 1, remote: 1 },
        state: PathState::Down,
        why: PathWhy::Silent,
    };
    let (sessions, paths, count) = (65_000, 1000, place::EVENT_COUNT as u64);
    (0..sessions).for_each(|at| control.tell(&session(at)));
    (0..paths).for_each(|at| control.tell(&path_down(at)));
    control.applied(5, [0; 32], 1, [0; 32]);
    control.refused(6, "a reason".to_owned());
    let mut events = Vec::new();
    let lost = link.events(&mut events);
    let kept = events.len() as u64 - 2;
    assert_eq!(lost.events, sessions + paths - kept);
    assert_eq!(kept, 3 * count / 4);
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, Event::PathState { .. }))
            .count() as u64,
        count / 4
    );
    assert!(matches!(
        events[events.len() - 2..],
        [
            Event::Applied { generation: 5, .. },
            Event::Refused { generation: 6, .. }
        ]
    ));
    let _ = std::fs::remove_dir_all(&folder);
}

/// Connects and lets the engine's end accept, on one thread.
fn attach(path: &std::path::Path, control: &mut Control) -> RawControl {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        control.service();
        drop(control.take_published());
        control.service();
        if let Some(raw) = RawControl::begin(socket) {
            return raw;
        }
    }
}

/// The same against a whole engine, for a while: it goes on, answers, and takes the next site that is one.
#[test]
fn a_whole_engine_survives() {
    if !may_run(&[]) {
        return;
    }
    let namespace = Namespace::new("site").unwrap();
    let mut engine = Controlled::start(&namespace).unwrap();
    let config = engine.site(SITE);
    let mut link = engine.attach().unwrap();
    let said = engine.publish(&mut link, &config, 1);
    assert!(matches!(said, Event::Applied { .. }), "{said:?}");
    drop(link);
    let interface = engine.interface.clone();
    namespace.ip(&format!("link set {interface} up")).unwrap();
    let key = File::open(engine.folder().join("site.key")).unwrap();
    let null = File::open("/dev/null").unwrap();
    let folder = File::open(engine.folder()).unwrap();
    let mut hostile = Hostile {
        random: Random::new(11),
        good: encode(&config.compile(), 1).unwrap(),
        fds: [key.as_fd(), null.as_fd(), folder.as_fd()],
        tail: 0,
    };
    let (start, mut writes) = (Instant::now(), 0u64);
    while start.elapsed() < Duration::from_secs(5) {
        hostile.tail = 0;
        let raw = RawControl::attach(&engine.socket()).unwrap();
        for _ in 0..2000 {
            writes += 1;
            if !hostile.act(&raw) {
                break;
            }
            raw.drain();
        }
    }
    assert!(engine.process.ended().is_none(), "{}", engine.process.log());
    let stats = patronus_link::query(&engine.uapi(), "stats").unwrap();
    let of = |name: &str| -> u64 {
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap().parse().unwrap()
    };
    let refused: Vec<_> = Refusals::default()
        .named()
        .map(|(name, _)| (name, of(&format!("control.{name}"))))
        .into();
    println!("{writes} writes; refused: {refused:?}");
    assert!(of("control.packets") > 0 && of("control.blobs") > 0 && of("control.commands") > 0);
    let mut link = engine.attach().unwrap();
    let said = engine.publish(&mut link, &config, 99);
    assert!(matches!(said, Event::Applied { generation: 99, .. }), "{said:?}");
    assert!(eventually(|| namespace.exec("wg", &["show", &interface]).is_ok()));
}
