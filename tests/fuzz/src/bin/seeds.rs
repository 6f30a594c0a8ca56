//! Writes a target's seeds into a folder, for cargo-fuzz: `seeds TARGET FOLDER`.
#![forbid(unsafe_code)]

use std::path::Path;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder] = &arguments[..] else {
        eprintln!("usage: seeds TARGET FOLDER");
        std::process::exit(2);
    };
    let Some(target) = patronus_fuzz::TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<&str> = patronus_fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("no such target: {name} (there are: {})", names.join(", "));
        std::process::exit(2);
    };
    std::fs::create_dir_all(folder)?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(Path::new(folder).join(format!("seed-{number:02}")), seed)?;
    }
    Ok(())
}
