//! A wg-quick file, from whoever has one.

use patronus_config::{import_wg_quick, parse};

use super::config::plain;

/// Is refused, or becomes a site's file; and its secrets stay where they are.
pub fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match import_wg_quick(text, "wg0") {
        Ok(imported) => {
            parse(&imported.toml).expect("what is written can be read");
            let said = format!("{}{}", imported.toml, imported.notes.join("\n"));
            plain(&said);
            assert!(
                imported
                    .key_files
                    .iter()
                    .all(|file| !said.contains(file.text.trim_end()))
            );
        }
        Err(error) => {
            assert!(error.place().is_some() && error.hint().is_some());
            plain(&error.to_string());
        }
    }
}
