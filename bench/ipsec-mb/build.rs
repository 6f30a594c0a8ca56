//! Compiles the shim where Debian's `libipsec-mb-dev` is installed. Elsewhere the package is empty: nobody needs the library to build.

use std::path::Path;
use std::process::Command;

const HEADER: &str = "/usr/include/intel-ipsec-mb.h";
const LIBRARY: &str = "libIPSec_MB.a";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ipsec_mb)");
    for path in ["build.rs", "src/shim.c", "src/probe.h"] {
        println!("cargo::rerun-if-changed={path}");
    }
    // So that installing it is noticed. A file that is not there would have this run, and the bench built, every time.
    let header = if Path::new(HEADER).exists() {
        HEADER
    } else {
        "/usr/include"
    };
    println!("cargo::rerun-if-changed={header}");
    let Some(folder) = library() else {
        return;
    };
    cc::Build::new().file("src/shim.c").compile("patronus_ipsec_mb");
    // Static, so that the program also starts where the library is not.
    println!("cargo::rustc-link-search=native={folder}");
    println!("cargo::rustc-link-lib=static:-bundle=IPSec_MB");
    println!("cargo::rustc-cfg=ipsec_mb");
}

/// The folder of the static library, if that and a header that is new enough are installed.
fn library() -> Option<String> {
    if std::env::var("CARGO_CFG_TARGET_ARCH").ok()? != "x86_64" {
        return None;
    }
    let compiler = cc::Build::new().try_get_compiler().ok()?;
    let run = |args: &[&str]| -> Option<String> {
        let output = Command::new(compiler.path()).args(args).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    run(&["-E", "-x", "c", "-o", "/dev/null", "src/probe.h"])?;
    // The name alone comes back where there is no such file.
    let path = run(&[&format!("-print-file-name={LIBRARY}")])?;
    let folder = Path::new(&path).parent()?.to_str()?.to_owned();
    (!folder.is_empty()).then_some(folder)
}
