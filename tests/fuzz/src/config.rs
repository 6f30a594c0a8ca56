//! A site's file. It is written by people and by programs, and read by the process that must not stumble over it.

use patronus_config::{diff, parse};

/// Is refused with a place and a hint, or is a site that an engine takes.
pub fn run(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    match parse(text) {
        Ok(config) => {
            let site = config.compile();
            let blob = patronus_abi::encode(&site, 1).expect("what parses is a blob");
            assert_eq!(patronus_abi::decode(&blob), Ok((site, 1)));
            assert!(diff(&config, &config.clone()).is_empty());
            config
                .warnings()
                .iter()
                .for_each(|warning| plain(&warning.to_string()));
        }
        Err(error) => {
            let (line, _) = error.place().expect("a place");
            assert!(line <= text.matches('\n').count() + 1);
            assert!(error.hint().is_some_and(|hint| !hint.is_empty()));
            plain(&error.to_string());
        }
    }
}

/// It ends up on a terminal.
pub fn plain(said: &str) {
    assert!(
        !said.chars().any(|c| c.is_control() && c != '\n' && c != '\t'),
        "{said:?}"
    );
}
