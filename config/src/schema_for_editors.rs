//! The schema that editors take to complete and check a file while it is typed (JSON Schema, draft 7).
//!
//! Written by `cargo run -p patronus-config --example schema`, and kept as `config/site.schema.json`. A file that an editor praises can still be
//! refused: what one line says of another is not in it.

use std::fmt::Write;

use crate::keys::{Key, Kind, TABLES, Table, Without};

/// The whole schema, as JSON.
pub fn json_schema() -> String {
    let mut to = Json::default();
    to.open("{");
    to.text("$schema", "http://json-schema.org/draft-07/schema#");
    to.text("title", "A site's file");
    to.text("type", "object");
    to.value("additionalProperties", "false");
    to.value("required", "[\"site\"]");
    to.name("properties").open("{");
    for table in &TABLES {
        to.name(table.name).table(table);
    }
    to.close("}");
    to.close("}");
    to.text.push('\n');
    to.text
}

/// A text that grows, and whether a comma is due.
#[derive(Default)]
struct Json {
    text: String,
    depth: usize,
    comma: bool,
}

impl Json {
    fn line(&mut self) {
        if self.comma {
            self.text.push(',');
        }
        if self.depth > 0 {
            self.text.push('\n');
        }
        self.text.push_str(&"  ".repeat(self.depth));
        self.comma = true;
    }

    /// What comes next has this name.
    fn name(&mut self, name: &str) -> &mut Json {
        self.line();
        write!(self.text, "{}: ", quoted(name)).expect("a String takes everything");
        self
    }

    fn value(&mut self, name: &str, json: &str) {
        self.name(name).text.push_str(json);
    }

    fn text(&mut self, name: &str, text: &str) {
        self.value(name, &quoted(text));
    }

    fn open(&mut self, bracket: &str) {
        self.text.push_str(bracket);
        self.depth += 1;
        self.comma = false;
    }

    fn close(&mut self, bracket: &str) {
        self.depth -= 1;
        self.comma = false;
        self.line();
        self.text.push_str(bracket);
    }

    fn table(&mut self, table: &Table) {
        self.open("{");
        self.text("description", table.says);
        if table.several {
            self.text("type", "array");
            self.name("items").open("{");
            self.keys(table.keys);
            self.close("}");
        } else {
            self.keys(table.keys);
        }
        self.close("}");
    }

    fn keys(&mut self, keys: &[Key]) {
        self.text("type", "object");
        self.value("additionalProperties", "false");
        let needed = keys.iter().filter(|key| key.without == Without::Needed);
        let needed: Vec<String> = needed.map(|key| quoted(key.name)).collect();
        if !needed.is_empty() {
            self.value("required", &format!("[{}]", needed.join(", ")));
        }
        self.name("properties").open("{");
        for key in keys {
            self.name(key.name).open("{");
            self.text("description", key.says);
            if let Without::Default(value) = key.without {
                // Defaults are written alike in both languages.
                self.value("default", value);
            }
            self.kind(&key.kind);
            self.close("}");
        }
        self.close("}");
    }

    fn kind(&mut self, kind: &Kind) {
        match kind {
            Kind::Bool => self.text("type", "boolean"),
            Kind::Whole(least, most) => {
                self.text("type", "integer");
                self.value("minimum", &least.to_string());
                self.value("maximum", &most.to_string());
            }
            Kind::Words(words) => {
                let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
                self.value("enum", &format!("[{}]", words.join(", ")));
            }
            Kind::Text(pattern) => {
                self.text("type", "string");
                self.text("pattern", pattern);
            }
            Kind::TextOrWhole(pattern, most) => self.either(&[Kind::Text(pattern), Kind::Whole(0, *most)]),
            Kind::List(inner) => {
                self.text("type", "array");
                self.name("items").open("{");
                self.kind(inner);
                self.close("}");
            }
            Kind::OneOrMore(inner, most) => {
                self.name("anyOf").open("[");
                self.line();
                self.open("{");
                self.kind(inner);
                self.close("}");
                self.comma = true;
                self.line();
                self.open("{");
                self.kind(&Kind::List(inner));
                self.value("maxItems", &most.to_string());
                self.close("}");
                self.close("]");
            }
            Kind::Tables(keys) => {
                self.text("type", "array");
                self.name("items").open("{");
                self.keys(keys);
                self.close("}");
            }
        }
    }

    fn either(&mut self, kinds: &[Kind]) {
        self.name("anyOf").open("[");
        for kind in kinds {
            self.line();
            self.open("{");
            self.kind(kind);
            self.close("}");
            self.comma = true;
        }
        self.close("]");
    }
}

/// A text as JSON has it (RFC 8259, section 7). Ours have no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
