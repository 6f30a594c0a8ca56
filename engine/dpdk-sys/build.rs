//! Finds the system's DPDK and compiles the shim against its headers. Without the feature there is nothing to build.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "dpdk")]
    dpdk::build();
}

#[cfg(feature = "dpdk")]
mod dpdk {
    /// Older ones lack functions that the shim calls.
    const OLDEST: &str = "22.11";

    /// What the shim calls. Drivers are loaded by DPDK itself, from the folder that it was built with.
    const LIBRARIES: [&str; 4] = ["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_eal"];

    pub fn build() {
        println!("cargo:rerun-if-changed=csrc/shim.c");
        println!("cargo:rerun-if-changed=csrc/shim.h");
        let found = pkg_config::Config::new()
            .atleast_version(OLDEST)
            .cargo_metadata(false)
            .probe("libdpdk");
        let found = match found {
            Ok(found) => found,
            Err(why) => panic!(
                "the feature `dpdk` needs DPDK {OLDEST} or newer with its headers, found by pkg-config as libdpdk \
                 (Debian: apt-get install libdpdk-dev pkg-config): {why}"
            ),
        };
        // What pkg-config says besides paths (the configuration's header, the processor that the libraries were built for) is not among
        // what the crate returns.
        cc::Build::new()
            .file("csrc/shim.c")
            .includes(&found.include_paths)
            .flag("-include")
            .flag("rte_config.h")
            .flag_if_supported("-march=corei7")
            .opt_level(3)
            // Two words of a handle are written sooner by themselves than put together first.
            .flag_if_supported("-fno-tree-slp-vectorize")
            .warnings(true)
            .extra_warnings(true)
            // DPDK's inline functions.
            .flag_if_supported("-Wno-unused-parameter")
            .compile("patronus_dpdk");
        for path in &found.link_paths {
            println!("cargo:rustc-link-search=native={}", path.display());
        }
        for library in LIBRARIES {
            println!("cargo:rustc-link-lib={library}");
        }
    }
}
