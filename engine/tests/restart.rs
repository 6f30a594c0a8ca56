//! What people are told beforehand of restarts is what the engine does.

#[path = "../../config/tests/files/mod.rs"]
mod files;

use files::file;
use patronus_config::plan::Process;
use patronus_config::{diff, parse};
use patronus_engine::site::cannot_change;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn differences_say_which_files_a_running_engine_refuses(
        bytes in prop::collection::vec(any::<u8>(), 160),
        changes in prop::collection::vec((0..160usize, any::<u8>()), 1..3),
    ) {
        let mut other = bytes.clone();
        for (at, byte) in changes {
            other[at] = byte;
        }
        let (old, new) = (parse(&file(&bytes)).unwrap(), parse(&file(&other)).unwrap());
        let plan = diff(&old, &new);
        let refused = cannot_change(&old.compile(), &new.compile());
        prop_assert_eq!(plan.restarts(Process::Engine), refused.is_some(), "{:?}\n{}", refused, plan);
    }
}
