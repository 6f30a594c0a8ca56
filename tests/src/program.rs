//! The engine's program, built where it is missing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The engine that people run: `$PATRONUS_ENGINE`, else the release build in the target directory of this test.
///
/// Cargo does not build another package's programs for a test. So that `cargo test -p patronus-tests` is enough, the
/// first test that asks builds it if it is missing or older than its sources (a few minutes the first time).
pub fn engine_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("PATRONUS_ENGINE") {
        Some(path) if !path.is_empty() => path.into(),
        _ => built(),
    })
}

fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a program");
    // target/PROFILE/deps/TEST
    let target = test.ancestors().nth(3).expect("tests lie in a target directory");
    let program = target.join("release/patronus-engine");
    if !is_fresh(&program) {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--release", "--locked", "--package", "patronus-engine"])
            .arg("--target-dir")
            .arg(target)
            .current_dir(workspace())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "cannot build patronus-engine: {status}");
    }
    program
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("a package of the workspace").to_owned()
}

fn is_fresh(program: &Path) -> bool {
    let Some(built) = modified(program) else {
        return false;
    };
    let sources = ["engine", "crypto", "Cargo.lock"].map(|name| workspace().join(name));
    sources
        .iter()
        .all(|source| newest(source).is_none_or(|time| time <= built))
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

/// The last change of a file, or of the program sources below a directory.
fn newest(path: &Path) -> Option<SystemTime> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return modified(path);
    };
    let files = entries.flatten().map(|entry| entry.path());
    let counts = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default();
        let source = file
            .extension()
            .is_some_and(|end| ["rs", "toml", "c"].iter().any(|e| end == *e));
        source || file.is_dir() && name != "tests" && name != "examples"
    };
    files.filter(counts).filter_map(|file| newest(&file)).max()
}
