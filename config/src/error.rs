//! What is wrong with a configuration, and where.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::hints;
use crate::value::HINT;

/// Names this far from a known one (edits) are taken for misspelt.
const MISSPELT: usize = 3;

/// Characters of a line that are shown at most.
const SHOWN: usize = 160;

/// Known names that are listed at most.
const LISTED: usize = 20;

/// Keys that people may write into the file although they do not belong there: what follows is not repeated.
const SECRETS: [&str; 2] = ["private_key", "preshared_key"];

/// What is wrong, and where: file, line and column from 1 on, and the line itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    file: Option<PathBuf>,
    place: Option<Place>,
    message: String,
    hint: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    /// In characters.
    column: usize,
    /// Characters of this line that are meant.
    width: usize,
    text: String,
}

impl Error {
    pub(crate) fn of_file(path: &Path, message: &str) -> Error {
        Error {
            file: Some(path.to_owned()),
            place: None,
            message: message.to_owned(),
            hint: None,
        }
    }

    /// Of what stands in no file.
    pub(crate) fn nowhere(message: impl Into<String>) -> Error {
        Error {
            file: None,
            place: None,
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn at(text: &str, span: Range<usize>, message: impl Into<String>) -> Error {
        Error {
            file: None,
            place: Some(Place::new(text, span)),
            message: message.into(),
            hint: None,
        }
    }

    /// What TOML says of this text.
    pub fn of_toml(text: &str, error: &toml::de::Error) -> Error {
        let place = error.span().map(|span| Place::new(text, span));
        let line = place.as_ref().map_or("", |place| place.text.trim());
        let (message, hint) = explained(error.message(), line);
        let is_public = line.split('=').next().is_some_and(|name| {
            let name = name.trim().trim_start_matches("[[peer]]");
            strsim::damerau_levenshtein(name, "public_key") <= MISSPELT
        });
        let error = Error {
            message: if is_public {
                message
            } else {
                without_keys(&message)
            },
            file: None,
            place,
            hint,
        };
        let error = error.hidden(&SECRETS);
        if is_public { error } else { error.without_keys() }
    }

    /// Without the value, if the line is one of these keys', whose values are not repeated.
    pub(crate) fn hidden(self, keys: &[&str]) -> Error {
        let line = self.place.as_ref().map_or("", |place| place.text.trim_start());
        let begins = |key: &&str| {
            line.get(..key.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(key))
        };
        if keys.iter().any(begins) {
            self.hidden_always()
        } else {
            self
        }
    }

    /// Without the value, if something in the line could be a key.
    pub(crate) fn without_keys(self) -> Error {
        let has_key = self.place.as_ref().is_some_and(|place| has_key_text(&place.text));
        if has_key { self.hidden_always() } else { self }
    }

    /// Without the value, whatever the key is.
    pub(crate) fn hidden_always(mut self) -> Error {
        if let Some(place) = &mut self.place {
            place.hide_value();
        }
        self
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// With an example of the key that is wrong, if there is no better hint.
    pub(crate) fn with_example(mut self, text: &str) -> Error {
        if self.hint.is_none() {
            let missing = self.message.strip_prefix("the key `");
            let missing = missing.and_then(|rest| rest.strip_suffix("` is missing"));
            let line = self.place.as_ref().map_or(0, |place| place.line);
            self.hint = Some(hints::example(text, line, missing));
        }
        self
    }

    /// The same, with the name of the file.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Error {
        self.file = Some(path.to_owned());
        self
    }

    /// Line and column, from 1 on; none if the file as a whole is wrong.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.place.as_ref().map(|place| (place.line, place.column))
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What may have been meant, or what to do.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl Place {
    fn new(text: &str, span: Range<usize>) -> Place {
        let start = span.start.min(text.len());
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = span.end.clamp(start, line_end);
        Place {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            text: text[line_start..line_end].trim_end().to_owned(),
        }
    }
}

impl Place {
    /// Leaves out what stands behind the key.
    fn hide_value(&mut self) {
        let key = self.text.split('=').next().unwrap_or_default();
        let first_word = || {
            let begin = self.text.len() - self.text.trim_start().len();
            let end = self.text[begin..].find(char::is_whitespace);
            end.map_or(0, |end| begin + end)
        };
        let is_one_word = key.len() < self.text.len() && !key.trim().contains(char::is_whitespace);
        let behind = if is_one_word { key.len() + 1 } else { first_word() };
        self.text.truncate(behind);
        self.text = without_keys(&self.text);
        self.column = self.column.min(self.text.chars().count() + 2);
        self.text.push_str(" (not shown)");
        self.width = 1;
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", plain(&file.display().to_string()))?;
        }
        if let Some(place) = &self.place {
            write!(f, "{}:{}:", place.line, place.column)?;
        }
        if self.file.is_some() || self.place.is_some() {
            f.write_str(" ")?;
        }
        f.write_str(&plain(&self.message))?;
        if let Some(place) = &self.place {
            place.show(f)?;
        }
        match (&self.hint, &self.place) {
            (Some(hint), Some(_)) => write!(f, " {}", plain(hint)),
            (Some(hint), None) => write!(f, ": {}", plain(hint)),
            (None, _) => Ok(()),
        }
    }
}

impl Place {
    /// The line, or as much of a long one as can be looked at, and marks below what is meant.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let skipped = if self.column > SHOWN / 2 && self.text.chars().count() > SHOWN {
            self.column - SHOWN / 4
        } else {
            0
        };
        let shown: Vec<char> = self.text.chars().skip(skipped).take(SHOWN).collect();
        let cut = |is_cut: bool| if is_cut { "..." } else { "" };
        let (front, behind) = (
            cut(skipped > 0),
            cut(self.text.chars().nth(skipped + SHOWN).is_some()),
        );
        let at = self.column - 1 - skipped;
        let text: String = shown
            .iter()
            .map(|c| if *c == '\t' { '\t' } else { plain_char(*c) })
            .collect();
        let before = shown.iter().take(at);
        let before: String = before.map(|c| if *c == '\t' { '\t' } else { ' ' }).collect();
        let width = self.width.min(shown.len().saturating_sub(at)).max(1);
        write!(f, "\n{margin} |\n{number} | {front}{text}{behind}\n{margin} | ")?;
        write!(f, "{}{before}{}", " ".repeat(front.len()), "^".repeat(width))
    }
}

impl std::error::Error for Error {}

/// What the parser says of a value that is not what it should be, and what it should be.
const EXPECTED: [(&str, &str); 5] = [
    (
        "expected a sequence",
        "expected a list: `[` values with commas between them `]`",
    ),
    ("expected a boolean", "expected true or false"),
    (
        "expected struct Neighbour",
        "expected `{ address = \"10.1.0.2\", mac = \"02:00:5e:10:00:01\" }`",
    ),
    (
        "invalid IP address syntax",
        "expected an address without a prefix, such as 10.1.0.2 or 2001:db8:1::2",
    ),
    ("wanted string or table", "expected a word in quotation marks"),
];

/// The parser's message in our words, and a hint if there is one: for a name that nobody knows the nearest one. `line` is where it is.
fn explained(message: &str, line: &str) -> (String, Option<String>) {
    let message = message.trim();
    if let Some((message, meant)) = message.split_once(HINT) {
        return (message.to_owned(), Some(meant.to_owned()));
    }
    if message == "invalid type: map, expected a sequence" && line.starts_with('[') {
        let said = "there may be several of these, each in double brackets";
        return (said.to_owned(), Some(format!("[{line}]")));
    }
    if message == "missing field `site`" {
        let hint = "a site has at least `[site]`, and below it `private_key_file = \"site.key\"`";
        return ("the table [site] is missing".to_owned(), Some(hint.to_owned()));
    }
    if let Some(name) = message.strip_prefix("missing field ") {
        return (format!("the key {name} is missing"), None);
    }
    if let Some((theirs, ours)) = EXPECTED.iter().find(|(theirs, _)| message.ends_with(theirs)) {
        return (message.replace(theirs, ours), None);
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let kind = match message {
        _ if message.starts_with("unknown field ") => "key",
        _ if message.starts_with("unknown variant ") => "word",
        _ => return (message.to_owned(), None),
    };
    let unknown = names.next().unwrap_or_default();
    let known: Vec<&str> = names.collect();
    if SECRETS.contains(&unknown) {
        let hint = format!("keys stand in files of their own: `{unknown}_file`");
        return (format!("unknown key `{unknown}`"), Some(hint));
    }
    (
        format!("unknown {kind} `{unknown}`"),
        Some(nearest(unknown, &known)),
    )
}

/// The known name that may have been meant, or all that there are. At least half of a short name has to be right.
pub(crate) fn nearest(unknown: &str, known: &[&str]) -> String {
    let misspelt = MISSPELT.min(unknown.chars().count() / 2);
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(name, unknown), name))
        .filter(|(distance, _)| *distance <= misspelt)
        .min();
    match near {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None if known.len() > LISTED => {
            let more = known.len() - LISTED;
            format!("known here: {} and {more} more", known[..LISTED].join(", "))
        }
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Text for a terminal: what would do something to it is replaced, character by character.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(plain_char).collect()
}

fn plain_char(c: char) -> char {
    if acts(c) { char::REPLACEMENT_CHARACTER } else { c }
}

/// Whether a terminal does something with it instead of showing it: control characters, and those that turn the direction of writing
/// (Unicode Standard Annex 9, section 2).
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Characters of a key in base64, without the `=` at its end.
const KEY_TEXT: usize = 43;

fn is_key_letter(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '+' || c == '/'
}

/// Whether something in a text could be a key.
fn has_key_text(text: &str) -> bool {
    text.split(|c| !is_key_letter(c))
        .any(|word| word.len() >= KEY_TEXT)
}

/// A text without what could be keys in it.
pub(crate) fn without_keys(text: &str) -> String {
    let words = text.split_inclusive(|c| !is_key_letter(c));
    words
        .map(|word| if has_key_text(word) { "(not shown)" } else { word })
        .collect()
}
