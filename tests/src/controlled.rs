//! An engine under control, and the tests' own control.

use crate::{LIMIT, engine_program};
use patronus_abi::Site;
use patronus_config::Config;
use patronus_link::{Event, Link, LinkError};
use patronus_netns::{Keys, Namespace, Process, RUNTIME_DIR, Result, prepare_runtime_dir, unique_name};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// An engine that is told its site over the channel. (The process goes before what it needs.)
pub struct Controlled {
    /// The engine.
    pub process: Process,
    /// The TUN's name.
    pub interface: String,
    /// Its keys.
    pub keys: Keys,
    namespace: Namespace,
    folder: PathBuf,
}

impl Controlled {
    /// Starts an engine that waits for control.
    pub fn start(namespace: &Namespace) -> Result<Controlled> {
        prepare_runtime_dir()?;
        let interface = unique_name("pn");
        let folder = std::env::temp_dir().join(format!("patronus-control-{interface}"));
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let keys = Keys::generate()?;
        let key = folder.join("site.key");
        fs::write(&key, &keys.private)?;
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600))?;
        let process = spawn(namespace, &folder)?;
        Ok(Controlled {
            process,
            interface,
            keys,
            namespace: namespace.clone(),
            folder,
        })
    }

    /// Where control attaches.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("engine.sock")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The socket that `wg` speaks to.
    pub fn uapi(&self) -> PathBuf {
        Path::new(RUNTIME_DIR).join(format!("{}.sock", self.interface))
    }

    /// Starts another engine in the place of one that has ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.namespace, &self.folder)?;
        Ok(())
    }

    /// Attaches, as soon as the engine is there.
    pub fn attach(&self) -> std::result::Result<Link, LinkError> {
        let start = Instant::now();
        loop {
            match Link::attach(&self.socket()) {
                Err(LinkError::NotThere | LinkError::Refused(_)) if start.elapsed() < LIMIT => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return other.map(|(link, _)| link),
            }
        }
    }

    /// A site from the text of a file, which begins with what is missing in `[engine]`.
    pub fn site(&self, text: &str) -> Config {
        let interface = &self.interface;
        let text = format!(
            "[site]\nprivate_key_file = 'site.key'\nlisten_port = 51820\n[engine]\ninterface = '{interface}'\n{text}"
        );
        patronus_config::parse_file(&self.folder.join("site.toml"), &text).expect("a site")
    }

    /// Publishes it and gives the answer.
    pub fn publish(&self, link: &mut Link, config: &Config, generation: u64) -> Event {
        let files = config.key_files();
        let files: Vec<File> = files.map(|file| File::open(file).expect("a key")).collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let site: Site = config.compile();
        link.publish(&site, generation, &fds).expect("published");
        answer(link)
    }
}

/// The next answer, whatever else happens meanwhile.
pub fn answer(link: &mut Link) -> Event {
    let start = Instant::now();
    let mut events = Vec::new();
    while events.is_empty() && start.elapsed() < LIMIT {
        let lost = link.events(&mut events);
        events.retain(|event| event.at().is_none());
        assert!(!lost.engine || !events.is_empty(), "the engine is gone");
        std::thread::sleep(Duration::from_millis(1));
    }
    events.into_iter().next().expect("an answer in time")
}

fn spawn(namespace: &Namespace, folder: &Path) -> Result<Process> {
    let mut command = Command::new(engine_program());
    command.arg("--control").arg(folder.join("engine.sock"));
    namespace.spawn(command)
}

impl Drop for Controlled {
    fn drop(&mut self) {
        let _ = self.process.stop();
        // It stays when the engine is gone.
        let _ = self.namespace.ip(&format!("link del {}", self.interface));
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(self.uapi());
    }
}
