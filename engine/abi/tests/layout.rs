//! docs/abi.md says what the layout is, and the layout has a number of its own.
//!
//! `PATRONUS_WRITE=1 cargo test -p patronus-abi --test layout` writes both files anew; a layout that has changed needs another [`ABI_VERSION`] first.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use patronus_abi::channel::{self, PLACES};
use patronus_abi::{ABI_VERSION, BLOB, BLOB_MAX, Described};

const ABOUT: &str = "\
# What engine and control share

Made from the code by `cargo test -p patronus-abi --test layout`; the test fails while this is out of date. Why it is so: [adr/0023](adr/0023-a-site-is-a-blob.md), \
[adr/0027](adr/0027-the-channel.md).

All numbers are little-endian and unsigned; sizes and offsets are bytes. A record has no gaps; unused bytes are zero, and whoever reads refuses what does not belong there.

## Attaching

`patronus-engine --control PATH` listens at PATH on a unix socket of sequenced packets (SOCK_SEQPACKET), mode 0660. Root, the engine's own user and `--control-user` may connect (SO_PEERCRED), \
one process at a time.

1. The engine sends a `HelloRecord`. With text behind it: why it does not want the process, and the end. Otherwise with three descriptors (SCM_RIGHTS): the control region, the event \
region, the statistics segment; files in memory, sealed against resizing, the latter two against writing. They are made for this process and nobody has had them before; the statistics go on.
2. Control compares the version; magic and version stand where they are in every version. Boot id, generation and content say whether anything has to be published.
3. Control writes a blob into the slot that it did not use last (its header as zeros first, then what is behind it, then the header), and sends a `PacketRecord` of kind 1 (PUBLISH) with \
the descriptors of the key files, the site's own first and then those of the peers that have one, in order; 253 at most, the others with packets of kind 2 (KEYS). \
A file has to be an ordinary one, of root's or the engine's user, for nobody else to use but a group to read.
4. The engine copies the blob, decodes it, and answers with an event: applied, or refused and why. The first one that is applied sets the engine up: an engine that cannot be set up ends.
5. A packet of kind 3 (BELL), either way: there is something in a ring whose reader had taken all.

A packet that means nothing ends the connection. When control is gone, the engine goes on with what it has.

## Rings

Commands go from control to the engine, events back. A ring has its slots and its tail in the writer's region and its head in the reader's; both count records from 0, modulo 2^64, and \
the slot of a record is its number modulo the count of slots. The writer writes the record, then the tail (release); the reader reads the tail (acquire), copies the record, \
then writes the head (release). Heads and tails are words of 8 bytes, read and written whole; each side remembers its own. A number of the other side's that cannot be is counted, and costs what is in the ring. \
A full ring of events: EVENTS_LOST is counted up; control asks for everything again. What is news only leaves room: sessions and endpoints half of the ring, paths and links a quarter, so that an answer finds a place however many peers come and go.

## Statistics

Words of 8 bytes in place, each counted by one thread of the engine. The directory's entries say where, under which name (Prometheus text format, without a prefix) and with which labels. An entry whose \
sequence number is odd, or changes while it and its counter are read, is being changed: leave it out. COPIED_AT is when those that are counted elsewhere (labels `port`, `public_key`, `handshake`, `control`) were copied last, nanoseconds \
of CLOCK_BOOTTIME: once a second while control is attached.

";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn about(lines: &[&str]) -> String {
    let text: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    // Links of rustdoc lead nowhere here.
    let text = text
        .join(" ")
        .replace("](crate::ABI_VERSION)", "]")
        .replace("](crate::content)", "]");
    text.replace("[`", "`").replace("`]", "`")
}

/// Every record with its fields, and nothing that is only said of them.
fn bare(records: &[Described]) -> String {
    let mut text = String::new();
    for record in records {
        write!(text, "{} {}:", record.name, record.size).unwrap();
        for field in record.fields {
            write!(text, " {} {} {},", field.name, field.kind, field.offset).unwrap();
        }
        text.push('\n');
    }
    text
}

fn layout() -> String {
    let mut text = bare(BLOB) + &bare(channel::CHANNEL);
    for (name, place) in PLACES {
        writeln!(text, "{name} {place}").unwrap();
    }
    text
}

fn tables(records: &[Described]) -> String {
    let mut text = String::new();
    for record in records {
        write!(
            text,
            "### {}: {} bytes\n\n{}\n\n",
            record.name,
            record.size,
            about(record.about)
        )
        .unwrap();
        text.push_str("| offset | field | type | |\n|---|---|---|---|\n");
        for field in record.fields {
            let (name, kind) = (field.name, field.kind);
            writeln!(
                text,
                "| {} | {name} | `{kind}` | {} |",
                field.offset,
                about(field.about)
            )
            .unwrap();
        }
        text.push('\n');
    }
    text
}

fn document() -> String {
    let mut text = ABOUT.to_owned();
    write!(
        text,
        "## Version {ABI_VERSION}: places\n\n| what | |\n|---|---|\n"
    )
    .unwrap();
    for (name, place) in PLACES {
        writeln!(text, "| {name} | {place} |").unwrap();
    }
    write!(
        text,
        "\nIn the control and the event region the rest of a head's or tail's cache line is free. A slot takes a blob of {BLOB_MAX} bytes at most.\n\n## The channel's records\n\n{}## The blob's records\n\nA blob is a `Header` and behind it, without gaps, sections: cores (`U16`), links, peers, allowed-ips (`PrefixRecord`), LANs, networks of LANs (`PrefixRecord`), neighbours, routes, policies, classes, addresses, next hops, text (UTF-8).\n\n{}",
        tables(channel::CHANNEL),
        tables(BLOB)
    )
    .unwrap();
    text.trim_end().to_owned() + "\n"
}

fn holds(path: &Path, text: &str) {
    if std::env::var_os("PATRONUS_WRITE").is_some() {
        fs::write(path, text).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == text,
        "{} is out of date: PATRONUS_WRITE=1 cargo test -p patronus-abi --test layout",
        path.display()
    );
}

#[test]
fn the_document_is_of_this_layout() {
    holds(&repository().join("docs/abi.md"), &document());
}

/// The file has the layout of the version that stands in its first line. Another layout cannot be written under the same number.
#[test]
fn another_layout_has_another_number() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layout.txt");
    let text = format!("version {ABI_VERSION}\n{}", layout());
    let found = fs::read_to_string(&path).unwrap_or_default();
    let same_number = found.lines().next() == text.lines().next();
    assert!(
        found == text || !same_number,
        "the layout is not that of version {ABI_VERSION} (tests/layout.txt) any more: raise ABI_VERSION"
    );
    holds(&path, &text);
}
