//! Programs for the kernel's packet filter machine (RFC 9669), written instruction by instruction, and the calls of bpf(2)
//! that load them. No compiler is needed at run time or build time.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Registers: r0 is the result, r1 to r5 are arguments and lost in calls, r6 to r9 are kept.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Width of a load.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Width {
    Word = 0x61,
    Half = 0x69,
    Byte = 0x71,
}

/// A place to jump to, forward only, so that every program ends.
#[derive(Clone, Copy)]
pub(crate) struct Label(pub(crate) usize);

#[derive(Default)]
pub(crate) struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps that have to learn where their label is.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Whether anything jumps to the label: what nothing jumps to must not be there at all.
    pub(crate) fn is_used(&self, label: Label) -> bool {
        self.jumps.iter().any(|(_, to)| to.0 == label.0)
    }

    /// The label is here.
    pub(crate) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    fn push(&mut self, code: u8, dst: Reg, src: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction {
            code,
            registers: src << 4 | dst as u8,
            offset,
            immediate,
        });
    }

    /// dst = memory at src + offset.
    pub(crate) fn load(&mut self, width: Width, dst: Reg, src: Reg, offset: i16) {
        self.push(width as u8, dst, src as u8, offset, 0);
    }

    /// r0 = bytes of the packet at this offset, in the order that they mean; the context is in r6. The kernel ends a program that reads
    /// behind the packet's end.
    pub(crate) fn load_packet(&mut self, width: Width, offset: u32) {
        let code = match width {
            Width::Word => 0x20,
            Width::Half => 0x28,
            Width::Byte => 0x30,
        };
        self.push(code, Reg::R0, 0, 0, offset as i32);
    }

    pub(crate) fn copy(&mut self, dst: Reg, src: Reg) {
        self.push(0xbf, dst, src as u8, 0, 0);
    }

    pub(crate) fn set(&mut self, dst: Reg, value: i32) {
        self.push(0xb7, dst, 0, 0, value);
    }

    pub(crate) fn add(&mut self, dst: Reg, value: i32) {
        self.push(0x07, dst, 0, 0, value);
    }

    pub(crate) fn and(&mut self, dst: Reg, mask: i32) {
        self.push(0x57, dst, 0, 0, mask);
    }

    fn jump(&mut self, code: u8, dst: Reg, src: u8, immediate: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(code, dst, src, 0, immediate as i32);
    }

    pub(crate) fn go(&mut self, to: Label) {
        self.jump(0x05, Reg::R0, 0, 0, to);
    }

    /// Compares 32 bits.
    pub(crate) fn if_equal(&mut self, reg: Reg, value: u32, to: Label) {
        self.jump(0x16, reg, 0, value, to);
    }

    pub(crate) fn if_not_equal(&mut self, reg: Reg, value: u32, to: Label) {
        self.jump(0x56, reg, 0, value, to);
    }

    /// Compares 32 bits.
    pub(crate) fn if_same(&mut self, reg: Reg, other: Reg, to: Label) {
        self.jump(0x1e, reg, other as u8, 0, to);
    }

    /// Compares 32 bits.
    pub(crate) fn if_not_same(&mut self, reg: Reg, other: Reg, to: Label) {
        self.jump(0x5e, reg, other as u8, 0, to);
    }

    /// Compares 32 bits.
    pub(crate) fn if_below(&mut self, reg: Reg, value: u32, to: Label) {
        self.jump(0xa6, reg, 0, value, to);
    }

    /// Compares two addresses.
    pub(crate) fn if_above(&mut self, reg: Reg, other: Reg, to: Label) {
        self.jump(0x2d, reg, other as u8, 0, to);
    }

    /// reg = the map with this descriptor.
    pub(crate) fn map(&mut self, reg: Reg, map: BorrowedFd<'_>) {
        const PSEUDO_MAP_FD: u8 = 1;
        self.push(0x18, reg, PSEUDO_MAP_FD, 0, map.as_raw_fd());
        self.push(0, Reg::R0, 0, 0, 0);
    }

    /// reg = where the only value of the map with this descriptor is.
    pub(crate) fn map_value(&mut self, reg: Reg, map: BorrowedFd<'_>) {
        const PSEUDO_MAP_VALUE: u8 = 2;
        self.push(0x18, reg, PSEUDO_MAP_VALUE, 0, map.as_raw_fd());
        self.push(0, Reg::R0, 0, 0, 0);
    }

    pub(crate) fn call(&mut self, helper: i32) {
        self.push(0x85, Reg::R0, 0, 0, helper);
    }

    pub(crate) fn exit(&mut self) {
        self.push(0x95, Reg::R0, 0, 0, 0);
    }

    /// The finished program.
    ///
    /// # Panics
    /// If a label was never placed, or lies behind a jump to it or too far away.
    pub(crate) fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let place = self.labels[label.0].expect("the label was placed");
            let distance = place.checked_sub(at + 1).expect("jumps go forward");
            self.code[at].offset = distance.try_into().expect("programs are short");
        }
        self.code
    }
}

/// Commands of bpf(2).
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROGRAM_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_XSK: u32 = 17;
/// A process may have the map's values in its memory (BPF_F_MMAPABLE).
const MAP_MMAPABLE: u32 = 1 << 10;

/// What a program is for.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Frames as a driver has received them.
    Xdp,
    /// Packets on their way from an interface into the host (from Linux 6.6 on).
    Ingress,
}

impl Kind {
    fn program_type(self) -> u32 {
        match self {
            Kind::Xdp => 6,
            Kind::Ingress => 3,
        }
    }

    fn attach_type(self) -> u32 {
        match self {
            Kind::Xdp => 37,
            Kind::Ingress => 46,
        }
    }
}

/// The arguments of bpf(2) as 32-bit words, as many as any of our commands reads.
type Attributes = [u32; 32];

/// # Safety
/// What the attributes point to is valid until the call returns.
unsafe fn bpf(command: libc::c_int, attributes: &Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the pointer and the size describe the attributes; the caller vouches for what they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            size_of::<Attributes>(),
        )
    };
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A new descriptor.
///
/// # Safety
/// As for `bpf`, and the command returns one.
unsafe fn bpf_fd(command: libc::c_int, attributes: &Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for it.
    let fd = unsafe { bpf(command, attributes)? };
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes a pointer into two words.
fn pointer(words: &mut [u32], to: *const impl Sized) {
    let address = to as u64;
    let [low, high] = [address as u32, (address >> 32) as u32];
    let ordered = if cfg!(target_endian = "little") {
        [low, high]
    } else {
        [high, low]
    };
    words[..2].copy_from_slice(&ordered);
}

/// A map from queue numbers to sockets.
pub(crate) fn socket_map(queues: u32) -> io::Result<OwnedFd> {
    let mut attributes = [0; 32];
    attributes[..4].copy_from_slice(&[MAP_TYPE_XSK, 4, 4, queues]);
    // SAFETY: nothing is pointed to.
    unsafe { bpf_fd(MAP_CREATE, &attributes) }
}

/// A map with one value of so many bytes, which a process may have in its memory.
pub(crate) fn shared_value(bytes: u32) -> io::Result<OwnedFd> {
    let mut attributes = [0; 32];
    attributes[..5].copy_from_slice(&[MAP_TYPE_ARRAY, 4, bytes, 1, MAP_MMAPABLE]);
    // SAFETY: nothing is pointed to.
    unsafe { bpf_fd(MAP_CREATE, &attributes) }
}

/// Lets a queue lead to a socket.
pub(crate) fn set_socket(map: BorrowedFd<'_>, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = socket.as_raw_fd();
    let mut attributes = [0; 32];
    attributes[0] = map.as_raw_fd() as u32;
    pointer(&mut attributes[2..], &raw const queue);
    pointer(&mut attributes[4..], &raw const value);
    // SAFETY: key and value are four bytes each, as the map was made, and outlive the call.
    unsafe { bpf(MAP_UPDATE, &attributes) }.map(|_| ())
}

/// Loads a program. What the verifier has to say against it is in the error.
pub(crate) fn load(kind: Kind, program: &[Instruction]) -> io::Result<OwnedFd> {
    // With a log that is too small the kernel refuses good programs as well, so it is only asked for when it is needed.
    load_with_log(kind, program, &mut []).map_err(|error| {
        let mut log = vec![0u8; 64 << 10];
        let _ = load_with_log(kind, program, &mut log);
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        match String::from_utf8_lossy(text).trim().lines().last() {
            None => error,
            Some(last) => io::Error::new(error.kind(), format!("{error}: {last}")),
        }
    })
}

fn load_with_log(kind: Kind, program: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attributes = [0; 32];
    attributes[0] = kind.program_type();
    attributes[1] = program.len() as u32;
    pointer(&mut attributes[2..], program.as_ptr());
    pointer(&mut attributes[4..], license.as_ptr());
    if !log.is_empty() {
        attributes[6] = 1;
        attributes[7] = log.len() as u32;
        pointer(&mut attributes[8..], log.as_mut_ptr());
    }
    // Words 12 to 15 are a name of 16 bytes.
    attributes[17] = kind.attach_type();
    // SAFETY: program, license and log are valid for the lengths beside them and outlive the call.
    unsafe { bpf_fd(PROGRAM_LOAD, &attributes) }
}

/// Where on an interface a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel makes a packet of it.
    Native,
    /// In the kernel's generic receive path: any driver.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            XdpMode::Native => "in the driver (native mode)",
            XdpMode::Generic => "in the kernel's generic path (generic mode)",
        })
    }
}

/// Runs the program for every frame of an interface, until the descriptor is closed.
pub(crate) fn attach(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let flags = match mode {
        XdpMode::Generic => 1 << 1,
        XdpMode::Native => 1 << 2,
    };
    link(program, ifindex, Kind::Xdp, flags)
}

/// Runs the program for every packet that comes into the host by an interface, until the descriptor is closed.
pub(crate) fn attach_ingress(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    link(program, ifindex, Kind::Ingress, 0)
}

fn link(program: BorrowedFd<'_>, ifindex: u32, kind: Kind, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = [0; 32];
    attributes[..4].copy_from_slice(&[program.as_raw_fd() as u32, ifindex, kind.attach_type(), flags]);
    // SAFETY: nothing is pointed to.
    unsafe { bpf_fd(LINK_CREATE, &attributes) }
}

/// Puts another program in the place of the attached one; no frame sees neither.
pub(crate) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = [0; 32];
    attributes[..2].copy_from_slice(&[link.as_raw_fd() as u32, program.as_raw_fd() as u32]);
    // SAFETY: nothing is pointed to.
    unsafe { bpf(LINK_UPDATE, &attributes) }.map(|_| ())
}
