//! `import`: a wg-quick file becomes a site's file and its key files.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use patronus_config::import_wg_quick;
use serde_json::json;
use zeroize::Zeroizing;

use crate::keys;
use crate::options::Import;
use crate::output::{Outcome, Output, Wrong, escaped};
use crate::setup;

/// Bytes of a wg-quick file at most.
const FILE_MAX: u64 = 16 << 20;

/// `patronus import`.
pub fn import(output: Output, options: &Import) -> Outcome {
    let text = read(&options.file)?;
    let name = options
        .file
        .file_stem()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let imported = import_wg_quick(&text, name).map_err(|error| Wrong::config(&error))?;
    let site = options.dir.join("site.toml");
    let keys: Vec<_> = imported
        .key_files
        .iter()
        .map(|key| options.dir.join(&key.name))
        .collect();
    for path in keys.iter().chain([&site]) {
        setup::must_be_new(path)?;
    }
    setup::make_folder(&options.dir)?;
    for (path, key) in keys.iter().zip(&imported.key_files) {
        write_key(path, &key.text)?;
        keys::let_control_in(path)?;
    }
    setup::create(&site, &imported.toml)?;
    let mut said = format!("wrote {}\n", site.display());
    for key in &keys {
        let _ = writeln!(said, "wrote {}", key.display());
    }
    for note in &imported.notes {
        let _ = writeln!(said, "{}", output.warn(&format!("note: {}", escaped(note))));
    }
    output.print(
        &json!({ "file": site, "key_files": keys, "notes": imported.notes }),
        said,
    )
}

/// The file's text, which holds keys.
fn read(path: &Path) -> Result<Zeroizing<String>, Wrong> {
    let wrong = |error: std::io::Error| Wrong::failed(format!("{}: {error}", path.display()));
    let mut text = Zeroizing::new(String::new());
    let file = fs::File::open(path).map_err(wrong)?;
    file.take(FILE_MAX).read_to_string(&mut text).map_err(wrong)?;
    Ok(text)
}

fn write_key(path: &Path, text: &str) -> Result<(), Wrong> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| Wrong::failed(format!("{}: {error}", path.display())))
}
