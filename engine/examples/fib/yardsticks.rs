//! The tables that the FIB is compared with, built once from routes and never changed. All of them answer the same.

use patronus_engine::fib::Group;
use patronus_mem::Table;

use crate::routes::Route;

/// An entry that leads further.
const FURTHER: u32 = 1 << 31;

const LANES: usize = 32;

/// P. Gupta, S. Lin, N. McKeown, "Routing Lookups in Hardware at Memory Access Speeds", INFOCOM 1998, with entries of 4 bytes as in
/// DPDK's `rte_lpm`.
pub struct Dir24 {
    first: Table<u32>,
    second: Vec<[u32; 256]>,
}

impl Dir24 {
    pub fn build(routes: &[Route<4>]) -> Dir24 {
        let mut dir = Dir24 {
            first: Table::new(1 << 24, || 0).expect("memory"),
            second: Vec::new(),
        };
        let mut order: Vec<&Route<4>> = routes.iter().collect();
        order.sort_by_key(|route| route.len);
        for route in order {
            let addr = u32::from_be_bytes(route.prefix) as usize;
            let group = route.group.number();
            if route.len <= 24 {
                let start = addr >> 8;
                dir.first[start..start + (1 << (24 - route.len))].fill(group);
                continue;
            }
            let entry = &mut dir.first[addr >> 8];
            if *entry & FURTHER == 0 {
                dir.second.push([*entry; 256]);
                *entry = FURTHER | (dir.second.len() - 1) as u32;
            }
            let start = addr & 255;
            let table = &mut dir.second[(*entry & !FURTHER) as usize];
            table[start..start + (1 << (32 - route.len))].fill(group);
        }
        dir
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.first[..]) + size_of_val(&self.second[..])
    }

    #[inline(always)]
    fn entry(&self, addr: u32) -> u32 {
        let entry = self.first[(addr >> 8) as usize];
        if entry & FURTHER == 0 {
            return entry;
        }
        self.second[(entry & !FURTHER) as usize][(addr & 255) as usize]
    }

    pub fn lookup(&self, addr: &[u8; 4]) -> Option<Group> {
        Group::new(self.entry(u32::from_be_bytes(*addr)))
    }

    pub fn lookup_burst(&self, addrs: &[[u8; 4]], groups: &mut [Option<Group>]) {
        for (group, addr) in groups.iter_mut().zip(addrs) {
            *group = self.lookup(addr);
        }
    }

    /// The answers of a /16, for each /24 in it.
    fn of_16(&self, block: usize) -> &[u32] {
        &self.first[block << 8..(block + 1) << 8]
    }
}

/// Plain strides of 16, 8 and 8 bits.
pub struct Strides {
    first: Vec<u32>,
    nodes: Table<[u32; 256]>,
}

impl Strides {
    pub fn build(dir: &Dir24) -> Strides {
        let (mut first, mut nodes) = (Vec::new(), Vec::new());
        let second = dir.second.len();
        for block in 0..1 << 16 {
            let answers = dir.of_16(block);
            if answers.iter().all(|a| *a == answers[0]) && answers[0] & FURTHER == 0 {
                first.push(answers[0]);
            } else {
                first.push(FURTHER | (second + nodes.len()) as u32);
                nodes.push(<[u32; 256]>::try_from(answers).expect("256 of them"));
            }
        }
        let mut all = dir.second.iter().chain(&nodes).copied();
        let nodes = Table::new(second + nodes.len(), || all.next().expect("as many")).expect("memory");
        Strides { first, nodes }
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.first[..]) + size_of_val(&self.nodes[..])
    }

    pub fn lookup(&self, addr: &[u8; 4]) -> Option<Group> {
        let mut entry = self.first[usize::from(addr[0]) << 8 | usize::from(addr[1])];
        for octet in [addr[2], addr[3]] {
            if entry & FURTHER == 0 {
                break;
            }
            entry = self.nodes[(entry & !FURTHER) as usize][usize::from(octet)];
        }
        Group::new(entry)
    }

    pub fn lookup_burst(&self, addrs: &[[u8; 4]], groups: &mut [Option<Group>]) {
        for (addrs, groups) in addrs.chunks(LANES).zip(groups.chunks_mut(LANES)) {
            let mut entries = [0; LANES];
            for (entry, addr) in entries.iter_mut().zip(addrs) {
                *entry = self.first[usize::from(addr[0]) << 8 | usize::from(addr[1])];
            }
            for level in [2, 3] {
                for (entry, addr) in entries.iter_mut().zip(addrs) {
                    if *entry & FURTHER != 0 {
                        *entry = self.nodes[(*entry & !FURTHER) as usize][usize::from(addr[level])];
                    }
                }
            }
            for (group, entry) in groups.iter_mut().zip(entries) {
                *group = Group::new(entry);
            }
        }
    }
}

/// The same strides with runs of equal entries stored once: a bit for each entry that differs from the one before it, and the number
/// of such bits says which answer it is (M. Degermark et al., "Small Forwarding Tables for Fast Routing Lookups", SIGCOMM
/// 1997; H. Asai, Y. Ohara, "Poptrie", SIGCOMM 2015).
pub struct Popcount {
    first: Vec<u32>,
    nodes: Table<Compressed>,
    answers: Vec<u32>,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Compressed {
    starts: [u64; 4],
    /// Bits before each word.
    before: [u8; 4],
    answers: u32,
}

impl Popcount {
    pub fn build(dir: &Dir24) -> Popcount {
        let strides = Strides::build(dir);
        let mut answers = Vec::new();
        let mut compressed = strides.nodes.iter().map(|node| {
            let mut to = Compressed {
                starts: [0; 4],
                before: [0; 4],
                answers: answers.len() as u32,
            };
            for (at, entry) in node.iter().enumerate() {
                if at % 64 == 0 {
                    to.before[at / 64] = (answers.len() - to.answers as usize) as u8;
                }
                if at == 0 || node[at - 1] != *entry {
                    to.starts[at / 64] |= 1 << (at % 64);
                    answers.push(*entry);
                }
            }
            to
        });
        let nodes = Table::new(strides.nodes.len(), || compressed.next().expect("as many")).expect("memory");
        drop(compressed);
        Popcount {
            first: strides.first,
            nodes,
            answers,
        }
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.first[..]) + size_of_val(&self.nodes[..]) + size_of_val(&self.answers[..])
    }

    #[inline(always)]
    fn step(&self, entry: u32, octet: u8) -> u32 {
        let node = &self.nodes[(entry & !FURTHER) as usize];
        let word = usize::from(octet / 64);
        let up_to = node.starts[word] & (u64::MAX >> (63 - octet % 64));
        self.answers[node.answers as usize + usize::from(node.before[word]) + up_to.count_ones() as usize - 1]
    }

    pub fn lookup(&self, addr: &[u8; 4]) -> Option<Group> {
        let mut entry = self.first[usize::from(addr[0]) << 8 | usize::from(addr[1])];
        for octet in [addr[2], addr[3]] {
            if entry & FURTHER == 0 {
                break;
            }
            entry = self.step(entry, octet);
        }
        Group::new(entry)
    }

    pub fn lookup_burst(&self, addrs: &[[u8; 4]], groups: &mut [Option<Group>]) {
        for (addrs, groups) in addrs.chunks(LANES).zip(groups.chunks_mut(LANES)) {
            let mut entries = [0; LANES];
            for (entry, addr) in entries.iter_mut().zip(addrs) {
                *entry = self.first[usize::from(addr[0]) << 8 | usize::from(addr[1])];
            }
            for level in [2, 3] {
                for (entry, addr) in entries.iter_mut().zip(addrs) {
                    if *entry & FURTHER != 0 {
                        *entry = self.step(*entry, addr[level]);
                    }
                }
            }
            for (group, entry) in groups.iter_mut().zip(entries) {
                *group = Group::new(entry);
            }
        }
    }
}
