//! One attached control: its socket, the regions that were made for it, and what it is in the middle of saying.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;

use patronus_abi::blob::LENGTH_AT;
use patronus_abi::channel::{
    COMMAND_WORDS, CONTROL_MAGIC, Command, DESCRIPTORS_MAX, EVENT_MAGIC, EVENT_WORDS, Event, HELLO_MAGIC,
    HelloRecord, PacketRecord, RegionRecord, packet, place,
};
use patronus_abi::{ABI_VERSION, BLOB_MAX, content};
use patronus_sync::{Layout, Region, RegionReader, RingReceiver, RingSender, WordsMut, create};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::sync::atomic::Ordering;
use zerocopy::{FromBytes, IntoBytes};

use super::ordinary::FileSystems;
use crate::site::{Keys, Site};

/// What messages call what was published.
const PUBLISHED: &str = "the published site";
/// Keys that may come with a site: the site's own and each peer's.
const KEYS_MAX: usize = 1 + patronus_abi::site::PEERS_MAX;

/// What a control is told when it attaches.
pub struct InForce {
    boot: [u8; 16],
    generation: u64,
    content: [u8; 32],
}

/// What control wants to be in force.
pub struct Published {
    /// As control counts.
    pub generation: u64,
    /// What tells it from others.
    pub content: [u8; 32],
    /// The site, or why it is none.
    pub site: Result<Box<Site>, String>,
}

/// What a packet was.
pub enum Heard {
    /// There is none.
    Nothing,
    /// Nothing to act on.
    Something,
    /// The last of a site.
    Site(Published),
    /// It means nothing.
    Nonsense,
    /// Control is gone.
    Gone,
}

/// A site of which keys are still missing.
struct Pending {
    slot: usize,
    generation: u64,
    missing: usize,
    keys: Keys,
    /// The first thing that was wrong with them.
    error: Option<String>,
}

/// One attached control.
pub struct Channel {
    socket: OwnedFd,
    /// The control region, of which the slots are read as a file.
    slots: OwnedFd,
    commands: RingReceiver<Region, RegionReader, COMMAND_WORDS>,
    events: RingSender<Region, RegionReader, EVENT_WORDS>,
    mine: Region,
    lost: u64,
    pending: Option<Pending>,
}

impl InForce {
    /// No site yet.
    pub fn nothing(boot: [u8; 16]) -> InForce {
        InForce {
            boot,
            generation: 0,
            content: [0; 32],
        }
    }

    /// This one from now on.
    pub fn set(&mut self, generation: u64, content: [u8; 32]) {
        self.generation = generation;
        self.content = content;
    }

    fn record(&self) -> HelloRecord {
        HelloRecord {
            magic: HELLO_MAGIC,
            abi: ABI_VERSION.into(),
            zero: 0.into(),
            boot: self.boot,
            generation: self.generation.into(),
            content: self.content,
        }
    }

    /// Tells somebody why he is not wanted.
    pub fn turn_away(&self, connection: BorrowedFd<'_>, why: &str) {
        let record = self.record();
        // Who does not wait for the answer does not want it.
        let _ = send(
            connection,
            &[IoSlice::new(record.as_bytes()), IoSlice::new(why.as_bytes())],
            &[],
        );
    }
}

impl Channel {
    /// Makes regions for who has connected and says hello.
    pub fn open(socket: OwnedFd, hello: &InForce, statistics: BorrowedFd<'_>) -> io::Result<Channel> {
        let slots = create("patronus-control", place::CONTROL_LEN)?;
        let theirs = RegionReader::map(&slots, place::CONTROL_MAPPED)?;
        // So that who looks at it knows what it is. Nobody relies on it.
        rustix::io::pwrite(&slots, RegionRecord::new(CONTROL_MAGIC).as_bytes(), 0)?;
        let (mine, event_fd) = Region::create("patronus-events", place::EVENT_LEN)?;
        mine.fault_in();
        for (at, word) in RegionRecord::new(EVENT_MAGIC).words().into_iter().enumerate() {
            mine.store(8 * at, word, Ordering::Relaxed);
        }
        let fds = [slots.as_fd(), event_fd.as_fd(), statistics];
        send(socket.as_fd(), &[IoSlice::new(hello.record().as_bytes())], &fds)?;
        let commands = Layout {
            tail: place::COMMAND_TAIL,
            head: place::COMMAND_HEAD,
            slots: place::COMMANDS,
            count: place::COMMAND_COUNT,
        };
        let events = Layout {
            tail: place::EVENT_TAIL,
            head: place::EVENT_HEAD,
            slots: place::EVENTS,
            count: place::EVENT_COUNT,
        };
        Ok(Channel {
            socket,
            commands: RingReceiver::new(mine.clone(), theirs.clone(), commands),
            events: RingSender::new(mine.clone(), theirs, events),
            slots,
            mine,
            lost: 0,
            pending: None,
        })
    }

    /// The next command in the ring, or why what stands there is none.
    pub fn command(&mut self) -> Option<Result<Command, &'static str>> {
        self.commands.receive().map(Command::read)
    }

    /// How often the ring's position was one that cannot be.
    pub fn nonsense(&self) -> u64 {
        self.commands.nonsense()
    }

    /// Puts an event into the ring. One that finds it full, or half full if it is only news, is counted there.
    pub fn tell(&mut self, event: &Event) {
        match self.events.send_leaving(left_by(event), event.words()) {
            Some(false) => {}
            Some(true) => {
                // If there is no room for a bell, others lie there that will be heard.
                let _ = send(
                    self.socket.as_fd(),
                    &[IoSlice::new(PacketRecord::of(packet::BELL).as_bytes())],
                    &[],
                );
            }
            None => self.lose(1),
        }
    }

    /// So many events there is no room for.
    pub fn lose(&mut self, events: u64) {
        self.lost += events;
        self.mine.store(place::EVENTS_LOST, self.lost, Ordering::Relaxed);
    }

    /// Takes the next packet.
    pub fn hear(&mut self, systems: &mut FileSystems) -> Heard {
        let mut bytes = [0; size_of::<PacketRecord>() + 1];
        let (len, flags, fds) = match receive(self.socket.as_fd(), &mut bytes) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
            Err(_) => return Heard::Gone,
        };
        if len == 0 {
            return Heard::Gone;
        }
        // Descriptors beyond the limit of open files do not arrive.
        let cut = flags.contains(ReturnFlags::CTRUNC);
        let Ok(packet) = PacketRecord::read_from_bytes(&bytes[..len]) else {
            return Heard::Nonsense;
        };
        match (packet.kind.get(), &mut self.pending) {
            (packet::BELL, _) if fds.is_empty() => Heard::Something,
            (packet::PUBLISH, None) => self.begin(&packet, fds, cut, systems),
            (packet::KEYS, Some(pending)) if fds.len() <= pending.missing => {
                pending.take(fds, cut, systems);
                self.finish()
            }
            _ => Heard::Nonsense,
        }
    }

    fn begin(
        &mut self,
        packet: &PacketRecord,
        fds: Vec<OwnedFd>,
        cut: bool,
        systems: &mut FileSystems,
    ) -> Heard {
        let (slot, keys) = (packet.slot.get() as usize, packet.keys.get() as usize);
        if slot >= place::SLOT_COUNT || keys > KEYS_MAX || fds.len() > keys {
            return Heard::Nonsense;
        }
        let pending = self.pending.insert(Pending {
            slot,
            generation: packet.generation.get(),
            missing: keys,
            keys: Keys::default(),
            error: None,
        });
        pending.take(fds, cut, systems);
        self.finish()
    }

    /// Puts the site together, if all keys are there.
    fn finish(&mut self) -> Heard {
        let Some(pending) = self.pending.take_if(|pending| pending.is_whole()) else {
            return Heard::Something;
        };
        let mut published = Published {
            generation: pending.generation,
            content: [0; 32],
            site: Err(String::new()),
        };
        published.site = match pending.error {
            Some(error) => Err(error),
            None => self.copy(pending.slot).and_then(|blob| {
                published.content = content(&blob);
                assemble(&blob, pending.generation, pending.keys)
            }),
        };
        Heard::Site(published)
    }

    /// What stands in a slot, as long as it says that it is.
    fn copy(&self, slot: usize) -> Result<Vec<u8>, String> {
        let failed = |errno: Errno| format!("{PUBLISHED}: cannot read its slot: {errno}");
        let at = (place::SLOTS + slot * place::SLOT) as u64;
        let mut len = [0; 8];
        rustix::io::pread(&self.slots, &mut len, at + LENGTH_AT as u64).map_err(failed)?;
        let len = u64::from_le_bytes(len);
        if len > BLOB_MAX as u64 {
            return Err(format!(
                "{PUBLISHED}: {len} bytes, at most {BLOB_MAX} are possible"
            ));
        }
        let mut blob = vec![0; len as usize];
        let mut read = 0;
        while read < blob.len() {
            match rustix::io::pread(&self.slots, &mut blob[read..], at + read as u64) {
                Ok(0) => return Err(format!("{PUBLISHED}: its slot ends too soon")),
                Ok(more) => read += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(blob)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Pending {
    /// Reads keys and closes their files: there may be more of them than files may be open.
    fn take(&mut self, fds: Vec<OwnedFd>, cut: bool, systems: &mut FileSystems) {
        if cut {
            let error = format!(
                "{PUBLISHED}: descriptors of keys were lost: raise the limit on open files (`ulimit -n`)"
            );
            self.error.get_or_insert(error);
            self.missing = 0;
        }
        for fd in fds {
            self.missing = self.missing.saturating_sub(1);
            if self.error.is_none() {
                // By its place: names do not travel.
                let name = format!("number {} of {PUBLISHED}", self.keys.len() + 1);
                self.error = self.keys.take(Path::new(&name), systems.ordinary(fd)).err();
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.missing == 0
    }
}

/// Places in the ring that an event leaves to those that matter more: answers find one however many peers come and go, and paths however many sessions.
fn left_by(event: &Event) -> usize {
    match event {
        Event::Session { .. } | Event::Endpoint { .. } | Event::PeerMoved { .. } => place::EVENT_COUNT / 2,
        Event::PathState { .. } | Event::Moved { .. } | Event::Link { .. } => place::EVENT_COUNT / 4,
        Event::Applied { .. } | Event::Refused { .. } | Event::CommandsRefused { .. } | Event::Unknown(_) => {
            0
        }
    }
}

fn assemble(blob: &[u8], generation: u64, keys: Keys) -> Result<Box<Site>, String> {
    let site = Site::assemble(Path::new(PUBLISHED), blob, keys)?;
    match site.generation() {
        found if found == generation => Ok(Box::new(site)),
        found => Err(format!(
            "{PUBLISHED}: generation {found} stands in its slot instead of {generation}"
        )),
    }
}

fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, ReturnFlags, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let mut all = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            all.extend(fds);
        }
    }
    Ok((received.bytes, received.flags, all))
}

fn send(socket: BorrowedFd<'_>, bytes: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, bytes, &mut ancillary, flags)?;
    Ok(())
}
