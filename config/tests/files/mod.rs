//! Files that are right, and different from each other: what stands in one follows from a row of bytes.

use std::fmt::Write;

pub const KEYS: [&str; 4] = [
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
    "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
    "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
];

/// Bytes that decide; 0 when there are no more.
pub struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn below(&mut self, limit: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        usize::from(*first) % limit
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 1
    }

    /// A line, or none.
    fn line(&mut self, to: &mut String, key: &str, values: &[&str]) {
        if let Some(value) = values.get(self.below(values.len() + 1)) {
            writeln!(to, "{key} = {value}").unwrap();
        }
    }

    fn some(&mut self, all: &[String]) -> String {
        let some: Vec<&str> = all.iter().filter(|_| self.yes()).map(String::as_str).collect();
        format!("[{}]", some.join(", "))
    }
}

/// The file that follows from these bytes.
pub fn file(bytes: &[u8]) -> String {
    let from = &mut Choices(bytes);
    let mut to = "[site]\nprivate_key_file = 'site.key'\n".to_owned();
    from.line(&mut to, "listen_port", &["51820", "0", "1"]);
    from.line(&mut to, "fwmark", &["7", "4294967295"]);
    to.push_str("[engine]\n");
    from.line(&mut to, "interface", &["'wg7'"]);
    from.line(&mut to, "workers", &["1", "2"]);
    from.line(&mut to, "cores", &["[0, 1]", "[1, 0]"]);
    from.line(&mut to, "spin", &["'1s'", "'5ms'"]);
    from.line(&mut to, "aead", &["'aws-lc'", "'ours-portable'"]);
    from.line(&mut to, "offload", &["false", "true"]);
    from.line(&mut to, "flows", &["1024"]);
    from.line(&mut to, "routes", &["100"]);
    to.push_str("[dpdk]\n");
    from.line(&mut to, "memory", &["'128MiB'", "'1GiB'"]);
    match from.below(3) {
        0 => from.line(&mut to, "huge_page_size", &["'2MiB'", "'1GiB'"]),
        _ => from.line(&mut to, "huge_pages", &["false", "true"]),
    }
    let has_links = links(from, &mut to);
    let mut hops = vec!["'host'".to_owned(), "'discard'".to_owned()];
    for (at, key) in KEYS.iter().enumerate() {
        peer(from, &mut to, at, key, has_links, &mut hops);
    }
    lans(from, &mut to, &mut hops);
    routes(from, &mut to, &hops);
    policies(from, &mut to, &hops);
    classes_and_services(from, &mut to);
    to
}

fn links(from: &mut Choices<'_>, to: &mut String) -> bool {
    let ids = if from.yes() { [3, 2] } else { [2, 3] };
    let mut any = false;
    for id in ids {
        if !from.yes() {
            continue;
        }
        any = true;
        writeln!(to, "[[link]]\nid = {id}\ninterface = 'wan{id}'").unwrap();
        port(from, to, id, &["'af_xdp'", "'udp'"]);
        from.line(to, "group", &["0", "255"]);
        from.line(to, "metered", &["true", "false"]);
        from.line(to, "behind_nat", &["true"]);
        from.line(to, "endpoint", &["'198.51.100.9:51820'", "'[2001:db8::9]:1'"]);
        from.line(to, "rate_up", &["'10Mbps'", "'64kbps'"]);
        from.line(to, "rate_down", &["'2500Mbps'", "'10Gbps'"]);
        from.line(to, "cost", &["0", "100"]);
        let capped = from.below(3);
        if capped > 0 && !to[to.rfind("[[link]]").unwrap()..].contains("dpdk") {
            writeln!(to, "data_cap = '{}'", ["20GB", "500 MB"][capped - 1]).unwrap();
            from.line(to, "data_cap_day", &["1", "28"]);
        }
    }
    any
}

fn port(from: &mut Choices<'_>, to: &mut String, at: usize, words: &[&str]) {
    if from.below(4) == 0 {
        writeln!(to, "port = 'dpdk'\ndevice = '0000:0{at}:00.{}'", from.below(2)).unwrap();
        from.line(to, "mtu", &["1500", "9000"]);
    } else {
        from.line(to, "port", words);
    }
}

fn peer(
    from: &mut Choices<'_>,
    to: &mut String,
    at: usize,
    key: &str,
    has_links: bool,
    hops: &mut Vec<String>,
) {
    let kind = from.below(3);
    if kind == 0 {
        return;
    }
    let table = if kind == 2 && has_links { "remote" } else { "peer" };
    writeln!(to, "[[{table}]]\npublic_key = '{key}'").unwrap();
    if from.yes() {
        let more = ["", "-new"][from.below(2)];
        writeln!(to, "name = 'site{at}{more}'").unwrap();
        hops.push(format!("'site{at}{more}'"));
    }
    from.line(to, "preshared_key_file", &["'a.psk'", "'/etc/b.psk'"]);
    from.line(to, "endpoint", &["'198.51.100.1:51820'", "'[2001:db8::1]:51820'"]);
    let all: Vec<String> = (0..6).map(|n| format!("'10.{at}.{n}.0/24'")).collect();
    writeln!(to, "allowed_ips = {}", from.some(&all)).unwrap();
    from.line(to, "keepalive", &["'25s'", "'1m'"]);
}

fn lans(from: &mut Choices<'_>, to: &mut String, hops: &mut Vec<String>) {
    if from.yes() {
        let name = ["inside", "within"][from.below(2)];
        writeln!(to, "[[lan]]\nname = '{name}'\nport = 'tun'").unwrap();
        hops[0] = format!("'{name}'");
        from.line(to, "networks", &["['10.100.0.0/16']"]);
    }
    let order = if from.yes() { [4, 5] } else { [5, 4] };
    for at in order {
        if !from.yes() {
            continue;
        }
        let name = ["office", "lab"][from.below(2)];
        writeln!(to, "[[lan]]\nname = '{name}{at}'\ninterface = 'eth{at}'").unwrap();
        port(from, to, at, &["'af_xdp'", "'af_packet'"]);
        let all = [format!("'10.20{at}.0.0/16'"), format!("'fd00:{at}::/64'")];
        writeln!(to, "networks = {}", from.some(&all)).unwrap();
        if from.yes() {
            let mac = from.below(200);
            let line = format!("{{ address = '192.0.2.{at}', mac = '02:00:00:00:00:{mac:02x}' }}");
            writeln!(to, "neighbours = [{line}]").unwrap();
            hops.push(format!("'192.0.2.{at}'"));
        }
    }
}

fn routes(from: &mut Choices<'_>, to: &mut String, hops: &[String]) {
    for prefix in ["10.0.0.0/8", "0.0.0.0/0", "fd00::/16"] {
        if from.yes() {
            writeln!(to, "[[route]]\nprefix = '{prefix}'\nvia = {}", via(from, hops)).unwrap();
        }
    }
}

fn via(from: &mut Choices<'_>, hops: &[String]) -> String {
    let first = &hops[from.below(hops.len())];
    if from.yes() {
        let second = &hops[from.below(hops.len())];
        return format!("[{first}, {second}]");
    }
    first.clone()
}

fn policies(from: &mut Choices<'_>, to: &mut String, hops: &[String]) {
    let begin = from.below(5);
    for at in 0..from.below(5) {
        let at = (begin + at) % 5;
        to.push_str("[[policy]]\n");
        if from.yes() {
            writeln!(to, "name = 'p{at}'").unwrap();
        }
        from.line(to, "src", &["'10.0.0.0/8'", "'192.0.2.7'"]);
        from.line(to, "dst", &["'10.9.0.0/16'"]);
        match from.below(3) {
            0 => from.line(to, "protocol", &["'icmp'", "47"]),
            _ => {
                from.line(to, "protocol", &["'tcp'", "17"]);
                from.line(to, "src_ports", &["22", "'1000-2000'"]);
                from.line(to, "dst_ports", &["'0-65535'", "443"]);
            }
        }
        from.line(to, "dscp", &["'ef'", "['af11', 1]"]);
        match from.below(3) {
            0 => to.push_str("action = 'drop'\n"),
            1 => to.push_str("action = 'route'\nclass = 'voice'\n"),
            _ => writeln!(to, "action = 'via'\nvia = {}", via(from, hops)).unwrap(),
        }
    }
}

fn classes_and_services(from: &mut Choices<'_>, to: &mut String) {
    for name in ["voice", "backup", "default"] {
        if from.yes() {
            writeln!(to, "[[class]]\nname = '{name}'").unwrap();
            from.line(to, "latency", &["'50ms'", "'1s'"]);
            from.line(to, "jitter", &["'5ms'", "'10ms'"]);
            from.line(to, "loss", &["'0.3%'", "'12.345%'"]);
            let modes = [
                "'pinned'",
                "'active_backup'",
                "'duplicate'",
                "'weighted'",
                "'lowest_latency'",
            ];
            from.line(to, "mode", &modes);
            from.line(to, "hold", &["'10s'", "'30s'"]);
            from.line(to, "sticky", &["'flow'", "'source'"]);
            from.line(to, "dscp", &["'copy'", "'ef'", "13"]);
        }
    }
    if from.yes() {
        to.push_str("[probe]\n");
        from.line(to, "interval", &["'20ms'", "'1s'"]);
        from.line(to, "idle", &["'1s'", "'5s'"]);
        from.line(to, "rate", &["5000"]);
    }
    if from.yes() {
        to.push_str("[metrics]\n");
        from.line(to, "listen", &["'[::1]:9586'", "'0.0.0.0:80'"]);
    }
    if from.yes() {
        to.push_str("[control]\n");
        from.line(to, "socket", &["'/run/a.sock'", "'b.sock'"]);
        from.line(to, "engine_socket", &["'/run/e.sock'"]);
        from.line(to, "group", &["'wheel'"]);
        from.line(to, "admin_group", &["'root'", "'adm'"]);
    }
}
