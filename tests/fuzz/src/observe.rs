//! Requests for a trace or a capture: whatever is asked, the answer is a task or a sentence, and a task is tested against any packet.

use std::net::IpAddr;

use patronus_observe::{Headers, Request, Subject};

/// The lines of a request.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(request) = Request::parse(text.lines()) else {
        return;
    };
    let again = request.to_string();
    let lines = again
        .strip_suffix("\n\n")
        .expect("ends with an empty line")
        .lines();
    assert_eq!(Request::parse(lines).as_ref(), Ok(&request));
    let Ok(mut filter) = request.parsed_filter() else {
        return;
    };
    let _ = filter.resolve(|key| Ok(key.len() as u32));
    for (protocol, inbound) in [(6, false), (17, true), (47, true)] {
        let headers = Headers {
            src: IpAddr::from([10, 1, 2, 3]),
            dst: IpAddr::from([10, 2, 0, 1]),
            protocol,
            ports: (protocol != 47).then_some((8000, 53)),
        };
        for headers in [Some(headers), None] {
            let known = filter.test(&Subject {
                headers,
                inbound,
                peer: Some(6),
            });
            let unknown = filter.test(&Subject {
                headers,
                inbound,
                peer: None,
            });
            assert!(known.is_some(), "all is known");
            assert!(unknown.is_none() || unknown == known, "what is sure stays so");
        }
    }
}
