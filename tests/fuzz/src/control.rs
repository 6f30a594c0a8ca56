//! Control messages: any bytes, and what two remotes that hear them do about lanes.

use std::collections::BTreeSet;

use patronus_crypto::{Duration, PublicKey, Tag, Time};
use patronus_engine::remote::message::{BootId, CONTROL_MAX, Control, Hello, Probe, Sizing};
use patronus_engine::remote::{Action, Own, Remote, hello};

use super::input::Input;

const KEYS: [PublicKey; 2] = [PublicKey([1; 32]), PublicKey([2; 32])];

/// Behind one byte that says what we are, the input is a row of what happens: a byte that says what, and time that passes before it.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let which = usize::from(input.u8() & 1);
    let mut own = Own {
        key: KEYS[which],
        hello: hello(BootId::default(), 0, 2, &[]),
    };
    let mut remote = Remote::new(KEYS[1 - which], BootId([7; 16]));
    let mut lanes = BTreeSet::new();
    let mut now = Time::from_secs(1000);
    while !input.is_empty() {
        let (what, pause) = (input.u8(), input.u8());
        now = now.after(Duration::from_millis(u64::from(pause) * 50));
        let mut out = Vec::new();
        match what & 7 {
            0 => remote.base_session(now),
            1 => remote.base_lost(),
            2 => remote.poll(&own, now, &mut out),
            3 => lanes
                .iter()
                .next()
                .into_iter()
                .for_each(|tag| remote.opened(*tag)),
            4 => lanes
                .iter()
                .next()
                .into_iter()
                .for_each(|tag| remote.lost(*tag, now)),
            _ => {
                let len = usize::from(input.u16()) % (2 * CONTROL_MAX);
                let Some(message) = understood(input.take(len)) else {
                    continue;
                };
                // What a site may say of itself, ours may.
                match message {
                    Control::Hello(said) if what & 7 == 7 => {
                        own.hello = ours(&own.hello, &said);
                        remote.own_changed(&own, now, &mut out);
                    }
                    other => {
                        let session = Time::from_secs(1000 - u64::from(what >> 4));
                        remote.take(&own, now, session, other, &mut out);
                    }
                }
            }
        }
        out.into_iter().for_each(|action| act(&mut lanes, action));
        assert!(remote.lanes().map(|plan| plan.tag).eq(lanes.iter().copied()));
    }
}

/// What is understood is the same when it is said again.
fn understood(content: &[u8]) -> Option<Control> {
    if let Ok(probe) = Probe::decode(content) {
        let again = probe.encode();
        assert!(again.len() <= content.len() && again[..4] == content[..4]);
        assert_eq!(Probe::decode(&again), Ok(probe));
    }
    if let Ok(sizing) = Sizing::decode(content) {
        let mut again = sizing.encode().to_vec();
        assert_eq!(again, content[..again.len()]);
        again.resize(content.len(), 0);
        assert_eq!(Sizing::decode(&again), Ok(sizing));
    }
    let message = Control::decode(content).ok()?;
    let again = message.encode();
    assert!(again.len() <= content.len() && again[..4] == content[..4]);
    assert_eq!(Control::decode(&again).as_ref(), Ok(&message));
    Some(message)
}

fn ours(before: &Hello, said: &Hello) -> Hello {
    hello(
        BootId::default(),
        before.generation + 1,
        said.workers,
        &said.links,
    )
}

/// Lanes are added once, removed and opened when they are there.
fn act(lanes: &mut BTreeSet<Tag>, action: Action) {
    match action {
        Action::Add(plan) => {
            assert!(plan.tag.bits() >> 8 != 0, "between two links");
            assert!(lanes.insert(plan.tag), "{:?} is there", plan.tag);
        }
        Action::Remove(tag) => assert!(lanes.remove(&tag), "{tag:?} is not there"),
        Action::Open(tag) => assert!(lanes.contains(&tag), "{tag:?} is not there"),
        Action::Send(message) => assert!(Control::decode(&message.encode()).is_ok()),
        Action::EraseLanes | Action::Unanswered | Action::TooManyPaths(_) => {}
    }
}
