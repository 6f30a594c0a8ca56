//! Keys: made, written to files that nobody else can read, and the public ones of private ones.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use base64ct::{Base64, Encoding};
use patronus_config::key_file;
use patronus_crypto::x25519;
use patronus_mem::Secret;
use serde_json::json;

use crate::output::{Outcome, Output, Wrong};

/// Characters of a key in base64.
const KEY_TEXT: usize = 44;

/// The group that the package's control process runs as.
const CONTROL: &str = "patronus-control";

/// A key in base64, with its line end.
type Text = Secret<{ KEY_TEXT + 1 }>;

/// A new private key.
pub fn private() -> Result<Secret<32>, Wrong> {
    let mut key = random()?;
    // RFC 7748, section 5, so that the key in the file is the key in use.
    key[0] &= 248;
    key[31] = (key[31] & 127) | 64;
    Ok(key)
}

/// The public key that belongs to a private one, in base64.
pub fn public(private: &Secret<32>) -> String {
    Base64::encode_string(&x25519::default().public(private))
}

/// Writes a key into a file that must not be there yet, for its owner's eyes only.
pub fn write(path: &Path, key: &Secret<32>) -> Result<(), Wrong> {
    let wrong = |error: std::io::Error| Wrong::failed(format!("{}: {error}", path.display()));
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(wrong)?;
    file.write_all(&*text(key)?)
        .and_then(|()| file.sync_all())
        .map_err(wrong)
}

/// Lets the control process of the package open a key file, where it is installed. It opens keys for the engine, and never reads them.
pub fn let_control_in(path: &Path) -> Result<(), Wrong> {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let Some(gid) = gid_of(&groups, CONTROL) else {
        return Ok(());
    };
    // Nobody else may give a file to that group; nor would the control process find a site in his folders.
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let wrong = |error: std::io::Error| Wrong::failed(format!("{}: {error}", path.display()));
    std::os::unix::fs::chown(path, None, Some(gid)).map_err(wrong)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)).map_err(wrong)
}

/// The number of a group, in a file like group(5).
fn gid_of(groups: &str, name: &str) -> Option<u32> {
    let line = groups
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split(':').nth(1)?.parse().ok()
}

/// `patronus keygen`.
pub fn keygen(output: Output, file: Option<&Path>) -> Outcome {
    let key = private()?;
    match file {
        None => print(&key),
        Some(file) => {
            write(file, &key)?;
            let public = public(&key);
            output.print(
                &json!({ "file": file, "public_key": public }),
                format!("{public}\n"),
            )
        }
    }
}

/// `patronus genpsk`.
pub fn genpsk(output: Output, file: Option<&Path>) -> Outcome {
    let key = random()?;
    match file {
        None => print(&key),
        Some(file) => {
            write(file, &key)?;
            output.print(&json!({ "file": file }), "")
        }
    }
}

/// `patronus pubkey`.
pub fn pubkey(output: Output, file: Option<&Path>) -> Outcome {
    let key = match file {
        Some(file) => key_file::read(file).map_err(|error| Wrong::failed(error.to_string()))?,
        None => typed()?,
    };
    let public = public(&key);
    output.print(&json!({ "public_key": public }), format!("{public}\n"))
}

fn random() -> Result<Secret<32>, Wrong> {
    let mut key = Secret::<32>::zeroed();
    match rustix::rand::getrandom(&mut key[..], rustix::rand::GetRandomFlags::empty()) {
        Ok(32) => Ok(key),
        _ => Err(Wrong::failed("the kernel gives no random bytes")),
    }
}

fn text(key: &Secret<32>) -> Result<Text, Wrong> {
    let mut text = Text::zeroed();
    Base64::encode(&key[..], &mut text[..KEY_TEXT]).map_err(|error| Wrong::failed(error.to_string()))?;
    text[KEY_TEXT] = b'\n';
    Ok(text)
}

fn print(key: &Secret<32>) -> Outcome {
    let written = std::io::stdout().write_all(&*text(key)?);
    written.map_err(|error| Wrong::failed(error.to_string()))
}

/// The private key on standard input.
fn typed() -> Result<Secret<32>, Wrong> {
    let mut text = Secret::<64>::zeroed();
    let mut len = 0;
    while len < text.len() {
        match std::io::stdin().read(&mut text[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) => return Err(Wrong::failed(error.to_string())),
        }
    }
    let mut key = Secret::<32>::zeroed();
    let decoded = Base64::decode(text[..len].trim_ascii(), &mut key[..]).map(<[u8]>::len);
    match decoded {
        Ok(32) => Ok(key),
        _ => Err(Wrong::failed(
            "expected a private key in base64 on standard input, as `patronus keygen` prints it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::gid_of;

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\npatronus-control-x:x:7:\npatronus-control:x:998:a,b\n";
        assert_eq!(gid_of(groups, "patronus-control"), Some(998));
        assert_eq!(gid_of(groups, "patronus"), None);
    }
}
