//! The memory of a running engine, read by root through /proc.

use patronus_netns::{Error, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Length of every key.
const KEY: usize = 32;

/// A process's readable memory at one moment.
pub struct Memory {
    regions: Vec<Region>,
}

struct Region {
    bytes: Vec<u8>,
    /// Locked and kept out of core dumps and of forked children: where the keys live (`lo`, `dd` and `wf` of VmFlags, proc(5)).
    secret: bool,
}

impl Memory {
    /// Copies what can be read. The process is not stopped: call it when the engine is quiet.
    pub fn of(pid: u32) -> Result<Memory> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut regions = Vec::new();
        let mut range = None;
        for line in maps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
                let Some((start, end)) = range.take().filter(|_| has("rd")) else {
                    continue;
                };
                regions.extend(read(&memory, start, end).map(|bytes| Region {
                    bytes,
                    secret: has("lo") && has("dd") && has("wf"),
                }));
            } else if let Some(found) = header(line) {
                range = Some(found);
            }
        }
        if regions.is_empty() {
            return Err(Error::new(format!("nothing readable in process {pid}")));
        }
        Ok(Memory { regions })
    }

    /// How often `bytes` occurs.
    pub fn count(&self, bytes: &[u8]) -> usize {
        let regions = self.regions.iter();
        regions.map(|region| occurrences(&region.bytes, bytes)).sum()
    }

    /// Every run of 32 bytes in key memory that is not all zeros, at the alignment of keys.
    pub fn secrets(&self) -> BTreeSet<[u8; KEY]> {
        let regions = self.regions.iter().filter(|region| region.secret);
        let chunks = regions.flat_map(|region| region.bytes.as_chunks::<KEY>().0);
        chunks.filter(|chunk| **chunk != [0; KEY]).copied().collect()
    }
}

/// `start-end perms ...`, the first line of a mapping.
fn header(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}

/// `None` for the kernel's own pages, which cannot be read this way.
fn read(memory: &File, start: u64, end: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; (end - start) as usize];
    memory.read_exact_at(&mut bytes, start).ok()?;
    Some(bytes)
}

fn occurrences(haystack: &[u8], needle: &[u8]) -> usize {
    let first = needle[0];
    let mut found = 0;
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        rest = &rest[at..];
        found += usize::from(rest.starts_with(needle));
        rest = &rest[1..];
    }
    found
}
