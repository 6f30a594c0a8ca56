//! The command line of `patronus-control`.

use std::ffi::OsString;
use std::path::PathBuf;

const HELP: &str = "\
patronus-control    tells an engine what a site is to be, and answers `patronus`

      --site FILE          the site's file (default /etc/patronus/site.toml)
      --engine PATH        the engine's socket (default: what [control] in the file says)
      --socket PATH        the socket for `patronus` (default: what [control] in the file says)
      --state FOLDER       what has to survive is kept there (default /var/lib/patronus)
      --uapi-dir FOLDER    where the engine answers questions (default /var/run/wireguard)
      --log LEVEL          error, warn, info (default) or debug
      --log-json           messages as JSON, one a line
      --version            print the version
  -h, --help               print this

SIGHUP: put the file in force again. SIGTERM: end; the engine goes on with what it has.
";

/// What the command line asks for.
pub enum Action {
    /// Print this and end.
    Print(String),
    /// Run.
    Run(Options),
}

/// How to run.
pub struct Options {
    /// The site's file.
    pub site: PathBuf,
    /// The engine's socket, if it is not as in the file.
    pub engine: Option<PathBuf>,
    /// The socket for people, if it is not as in the file.
    pub socket: Option<PathBuf>,
    /// What has to survive is kept there.
    pub state: PathBuf,
    /// Where the engine answers questions.
    pub uapi_dir: PathBuf,
    /// How much is said.
    pub log: tracing::Level,
    /// Messages are JSON.
    pub log_json: bool,
}

/// Understands the command line; an error is one sentence.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Action, String> {
    use lexopt::prelude::*;
    let mut options = Options {
        site: "/etc/patronus/site.toml".into(),
        engine: None,
        socket: None,
        state: "/var/lib/patronus".into(),
        uapi_dir: "/var/run/wireguard".into(),
        log: tracing::Level::INFO,
        log_json: false,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("site") => options.site = path(&mut parser)?,
            Long("engine") => options.engine = Some(path(&mut parser)?),
            Long("socket") => options.socket = Some(path(&mut parser)?),
            Long("state") => options.state = path(&mut parser)?,
            Long("uapi-dir") => options.uapi_dir = path(&mut parser)?,
            Long("log") => options.log = level(&mut parser)?,
            Long("log-json") => options.log_json = true,
            Long("version") => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Action::Print(format!("patronus-control {version}\n")));
            }
            Short('h') | Long("help") => return Ok(Action::Print(HELP.to_owned())),
            other => return Err(format!("{}; see --help", other.unexpected())),
        }
    }
    Ok(Action::Run(options))
}

/// By its whole name: what it is relative to may change.
fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    std::path::absolute(&value).map_err(|error| format!("{}: {error}", value.display()))
}

fn level(parser: &mut lexopt::Parser) -> Result<tracing::Level, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    match value.to_str() {
        Some("error") => Ok(tracing::Level::ERROR),
        Some("warn") => Ok(tracing::Level::WARN),
        Some("info") => Ok(tracing::Level::INFO),
        Some("debug") => Ok(tracing::Level::DEBUG),
        _ => Err(format!(
            "--log takes error, warn, info or debug, not `{}`",
            value.display()
        )),
    }
}
