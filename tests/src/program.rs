//! The programs under test and those that tests use, built where they are missing.

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
    PROGRAM.get_or_init(|| {
        named_or_built(
            "PATRONUS_ENGINE",
            "patronus-engine",
            &["config", "control/link", "engine", "crypto"],
        )
    })
}

/// The impairment hop: `$PATRONUS_HOP`, else as [`engine_program`].
pub fn hop_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| named_or_built("PATRONUS_HOP", "patronus-hop", &["tests/hop", "engine/io"]))
}

/// The control process: `$PATRONUS_CONTROL`, else as [`engine_program`].
pub fn control_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        named_or_built(
            "PATRONUS_CONTROL",
            "patronus-control",
            &["config", "control", "engine/io"],
        )
    })
}

/// The command line: `$PATRONUS`, else as [`engine_program`].
pub fn cli_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || named_or_built("PATRONUS", "patronus-cli", &["config", "control", "engine/io"]);
    PROGRAM.get_or_init(build)
}

fn named_or_built(variable: &str, package: &str, sources: &[&str]) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) if !path.is_empty() => path.into(),
        _ => built(package, sources),
    }
}

fn built(package: &str, sources: &[&str]) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a program");
    // target/PROFILE/deps/TEST
    let target = test.ancestors().nth(3).expect("tests lie in a target directory");
    let name = package.strip_suffix("-cli").unwrap_or(package);
    let program = target.join("release").join(name);
    if !is_fresh(&program, sources) {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--release", "--locked", "--package", package])
            .arg("--target-dir")
            .arg(target)
            .current_dir(workspace())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "cannot build {package}: {status}");
    }
    program
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("a package of the workspace").to_owned()
}

fn is_fresh(program: &Path, sources: &[&str]) -> bool {
    let Some(built) = modified(program) else {
        return false;
    };
    let mut sources = sources.iter().chain(&["Cargo.lock"]);
    sources.all(|source| newest(&workspace().join(source)).is_none_or(|time| time <= built))
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
