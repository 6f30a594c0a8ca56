//! The kernels under valgrind's memcheck (`scripts/test memcheck`): every buffer is as long as it has to be and no byte longer, and keys and
//! texts that are sealed are *undefined* to valgrind, which reports each branch and each address that depends on them. Run by itself it is
//! a test like others.
//!
//! Opening is watched for what it reads and writes only: there, what happens depends on whether a tag was right, as it should.

use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};
use patronus_crypto_simd::{Isa, Kernel, Packet, TAG};

/// What is asked of valgrind (`memcheck.h`).
#[derive(Clone, Copy)]
enum Request {
    Inaccessible = 0x4d43_0000,
    Undefined = 0x4d43_0001,
    Defined = 0x4d43_0002,
    /// Which bits are undefined.
    Bits = 0x4d43_0008,
}

/// What valgrind answers: 0 where it is not there.
///
/// # Safety
/// With [`Request::Bits`], the second argument is the address of as many bytes to write as the third says.
#[cfg(target_arch = "x86_64")]
unsafe fn ask(request: Request, args: [usize; 3]) -> usize {
    let all = [request as usize, args[0], args[1], args[2], 0, 0];
    let mut answer = 0;
    // SAFETY: what `valgrind.h` has for this processor. Without valgrind it turns a register all the way round; with it, memory is written as
    // the caller allows.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") all.as_ptr(),
            inout("rdx") answer,
        );
    }
    answer
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn ask(_: Request, _: [usize; 3]) -> usize {
    0
}

/// Has valgrind take these bytes for what the request says.
fn tell(request: Request, bytes: &[u8]) {
    // SAFETY: nothing is written.
    unsafe { ask(request, [bytes.as_ptr() as usize, bytes.len(), 0]) };
}

/// Whether valgrind takes any bit of it for undefined; none without valgrind.
fn is_undefined(bytes: &[u8]) -> Option<bool> {
    let mut undefined = vec![0u8; bytes.len()];
    let args = [
        bytes.as_ptr() as usize,
        undefined.as_mut_ptr() as usize,
        bytes.len(),
    ];
    // SAFETY: there is room for a byte for each.
    let told = unsafe { ask(Request::Bits, args) } == 1;
    told.then(|| undefined.iter().any(|bits| *bits != 0))
}

struct Case {
    key: Box<[u8; 32]>,
    nonce: [u8; 12],
    aad: Box<[u8]>,
    text: Vec<u8>,
    sealed: Vec<u8>,
    /// In front of the packet.
    gap: usize,
}

impl Case {
    fn new(seed: usize, len: usize, aad: usize) -> Case {
        let byte = |n: usize| (n.wrapping_add(seed << 9).wrapping_mul(0x9e37_79b9) >> 13) as u8;
        let bytes = |from: usize, len: usize| (from..from + len).map(byte).collect::<Vec<u8>>();
        let key: [u8; 32] = bytes(0, 32).try_into().unwrap();
        let nonce = bytes(32, 12).try_into().unwrap();
        let (aad, text) = (bytes(44, aad), bytes(200, len));
        let mut sealed = text.clone();
        let tag = ChaCha20Poly1305::new(&key.into())
            .encrypt_inout_detached(&<[u8; 12]>::into(nonce), &aad, (&mut sealed[..]).into())
            .unwrap();
        sealed.extend_from_slice(&tag);
        Case {
            key: Box::new(key),
            nonce,
            aad: aad.into(),
            text,
            sealed,
            gap: seed * 7 % 33,
        }
    }

    /// The packet, with nothing behind and what nobody may touch in front.
    fn memory(&self, content: &[u8]) -> Box<[u8]> {
        let memory = [&vec![0; self.gap][..], content].concat().into_boxed_slice();
        tell(Request::Inaccessible, &memory[..self.gap]);
        memory
    }
}

fn packets<'a>(cases: &'a [Case], memory: &'a mut [Box<[u8]>]) -> Vec<Packet<'a>> {
    let all = cases.iter().zip(memory);
    all.map(|(case, memory)| Packet::new(&case.key, case.nonce, &case.aad, &mut memory[case.gap..]))
        .collect()
}

fn seal(kernel: Kernel, cases: &[Case]) {
    let contents = cases.iter().map(|case| [&case.text[..], &[0x99; TAG]].concat());
    let mut memory: Vec<_> = cases
        .iter()
        .zip(contents)
        .map(|(case, content)| case.memory(&content))
        .collect();
    for (case, memory) in cases.iter().zip(&memory) {
        tell(Request::Undefined, &case.key[..]);
        tell(Request::Undefined, &memory[case.gap..]);
    }
    let mut packets = packets(cases, &mut memory);
    kernel.seal(&mut packets);
    assert!(packets.iter().all(|packet| packet.ok));
    drop(packets);
    for (case, memory) in cases.iter().zip(&memory) {
        let sealed = &memory[case.gap..];
        assert_ne!(
            is_undefined(sealed),
            Some(false),
            "valgrind follows what was secret"
        );
        tell(Request::Defined, sealed);
        tell(Request::Defined, &case.key[..]);
        assert!(sealed == case.sealed, "{kernel:?}: {} bytes", case.text.len());
    }
}

fn open(kernel: Kernel, cases: &[Case], forged: usize) {
    let mut memory: Vec<_> = cases.iter().map(|case| case.memory(&case.sealed)).collect();
    if let Some(last) = memory.get_mut(forged).and_then(|memory| memory.last_mut()) {
        *last ^= 1;
    }
    let mut packets = packets(cases, &mut memory);
    kernel.open(&mut packets);
    for (n, packet) in packets.iter().enumerate() {
        assert_eq!(packet.ok, n != forged, "{kernel:?}: packet {n}");
    }
    drop(packets);
    for (n, (case, memory)) in cases.iter().zip(&memory).enumerate() {
        let text = &memory[case.gap..][..case.text.len()];
        let expected = if n == forged {
            &case.sealed[..case.text.len()]
        } else {
            &case.text
        };
        assert!(text == expected, "{kernel:?}: {} bytes", case.text.len());
    }
}

fn check(kernel: Kernel, cases: &[Case]) {
    seal(kernel, cases);
    open(kernel, cases, usize::MAX);
    open(kernel, cases, cases.len() / 2);
}

#[test]
fn nothing_is_touched_that_is_not_a_packets_own_and_no_branch_or_address_is_secret() {
    let under_valgrind = is_undefined(&[0]).is_some();
    println!("under valgrind: {}", if under_valgrind { "yes" } else { "no" });
    let edges = [0, 1, 15, 16, 17, 31, 33, 48, 63, 64, 65, 127, 128, 129];
    let long = [
        191, 255, 257, 300, 511, 640, 703, 704, 705, 959, 961, 1420, 2049, 4097,
    ];
    for isa in Isa::ALL {
        let Some(kernel) = Kernel::new(isa) else {
            println!("skipped: {isa:?}, which needs {}", isa.needs());
            continue;
        };
        println!("checked: {isa:?}");
        for (seed, len) in edges.into_iter().chain(long).enumerate() {
            check(kernel, &[Case::new(seed, len, 0)]);
            check(kernel, &[Case::new(seed, len, 1 + seed)]);
        }
        for count in [2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 33, 64] {
            let mixed = |n: usize| [&edges[..], &long[..11]].concat()[(n * 11 + count) % 25];
            let cases: Vec<Case> = (0..count).map(|n| Case::new(n, mixed(n), 0)).collect();
            check(kernel, &cases);
            let alike: Vec<Case> = (0..count).map(|n| Case::new(n, edges[count % 14], 0)).collect();
            check(kernel, &alike);
        }
        let with_data: Vec<Case> = (0..14).map(|n| Case::new(n, 40 * n, n % 3)).collect();
        check(kernel, &with_data);
    }
}
