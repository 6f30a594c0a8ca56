//! A namespace as a NAT router, with a connection table that forgets UDP fast.

use crate::{Namespace, Result};

/// How long the router's connection table remembers.
#[derive(Clone, Copy, Debug)]
pub struct NatTimeouts {
    /// A UDP flow after its last packet, seconds.
    pub udp_secs: u32,
}

impl Default for NatTimeouts {
    fn default() -> NatTimeouts {
        NatTimeouts { udp_secs: 2 }
    }
}

/// Makes `namespace` forward, and masquerade what leaves through `outside` (v4 and v6).
pub fn masquerade(namespace: &Namespace, outside: &str, timeouts: NatTimeouts) -> Result<()> {
    namespace.sysctl("net.ipv4.ip_forward", "1")?;
    let _ = namespace.sysctl("net.ipv6.conf.all.forwarding", "1");
    let rules = format!(
        "table inet patronus_nat {{\n chain postrouting {{\n  type nat hook postrouting priority srcnat;\n  \
         oifname \"{outside}\" masquerade random\n }}\n}}\n"
    );
    namespace.exec_with_input("nft", &["-f", "-"], rules.as_bytes())?;
    // The keys are there only once the first rule that needs connection tracking is.
    let seconds = timeouts.udp_secs.to_string();
    namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout", &seconds)?;
    namespace.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", &seconds)
}
