//! Writes the schema for editors: `cargo run -p patronus-config --example schema`. A test fails while it is out of date.

fn main() -> std::io::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/site.schema.json");
    std::fs::write(path, patronus_config::json_schema())
}
