//! `patronus-engine NAME`: a userspace WireGuard interface, in place of wireguard-go. `patronus-engine --config FILE`: a whole site. `patronus-engine --control PATH`:
//! a site that the control process says.

#![forbid(unsafe_code)]

mod background;
mod follow;
mod notify;
mod options;

use std::path::Path;
use std::process::ExitCode;

use patronus_crypto::Random;
use patronus_engine::clock::SystemRandom;
use patronus_engine::control::{Control, User};
use patronus_engine::engine::{Controlled, Source};
use patronus_engine::keeper::Kept;
use patronus_engine::log::Log;
use patronus_engine::site::Site;
use patronus_engine::slowpath::Ended;
use patronus_engine::stats::Directory;
use patronus_engine::{engine, keeper, reader};

use crate::options::Action;

fn main() -> ExitCode {
    let action = match options::parse(std::env::args_os().skip(1)) {
        Ok(action) => action,
        Err(message) => {
            eprintln!("patronus-engine: {message}");
            return ExitCode::from(2);
        }
    };
    match action {
        Action::Print(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Action::Stats(path) => show_stats(&path),
        Action::Observe {
            socket,
            request,
            file,
        } => follow::run(&socket, &request, &file),
        Action::Background(arguments) => background::start(&arguments),
        Action::Check(path) => check(&path),
        Action::Read(path) => read(&path),
        Action::Keep(kept) => keep(kept),
        Action::Run {
            config,
            site,
            announce,
        } => run(&config, site.map_or(Source::None, Source::File), announce),
        Action::Control { path, user, config } => match attend(&path, user, *config) {
            Ok((config, source)) => run(&config, source, false),
            Err(error) => {
                eprintln!("patronus-engine: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Runs the engine on this process until its interface or socket is gone.
fn run(config: &engine::Config, source: Source, announce: bool) -> ExitCode {
    let slow_path = match engine::start(config, source) {
        Ok(slow_path) => slow_path,
        Err(error) => {
            eprintln!("patronus-engine: {error}");
            return ExitCode::FAILURE;
        }
    };
    if announce {
        background::ready(slow_path.null());
    }
    notify::ready();
    let why = slow_path.run();
    config.log.verbose(format_args!("ended: {why}"));
    if let Ended::TunFailed = why {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Waits for control to say what to be.
fn attend(path: &Path, user: User, config: engine::Config) -> Result<(engine::Config, Source), String> {
    engine::prepare(&config).map_err(|error| error.to_string())?;
    let mut boot = [0; 16];
    SystemRandom.fill(&mut boot);
    let bound = Control::bind(path, user, boot);
    let (mut control, segment) =
        bound.map_err(|error| format!("cannot listen at {}: {error}", path.display()))?;
    // Here, and not once there is a site: the control process may come later, or be started after us.
    notify::ready();
    let log = Log::new(&path.display().to_string(), options::level());
    let published = control.wait_for_site(&log);
    let published = published.map_err(|error| format!("cannot wait for the control process: {error}"))?;
    let site = published.site?;
    let mut config = site.engine(config);
    config.log = Log::new(&config.name, options::level());
    let content = published.content;
    let controlled = Controlled {
        control,
        directory: Directory::new(segment),
        site,
        content,
    };
    Ok((config, Source::Control(Box::new(controlled))))
}

/// Says whether a site's file, its keys and what it routes by are right.
fn check(path: &Path) -> ExitCode {
    let checked = Site::load(path).and_then(|site| {
        engine::check(&site).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(site)
    });
    match checked {
        Ok(site) => {
            site.warn();
            println!("{}: {}", path.display(), site.summary());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("patronus-engine: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the file whenever the engine asks for it.
fn read(path: &Path) -> ExitCode {
    match reader::serve(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patronus-engine: the configuration cannot be read again: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes interfaces whenever the engine asks for it.
fn keep(kept: Kept) -> ExitCode {
    match keeper::serve(kept) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patronus-engine: interfaces cannot be taken: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the counters of a running engine.
fn show_stats(socket: &Path) -> ExitCode {
    use std::io::{Read, Write};
    let query = || -> std::io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        stream.write_all(b"get=stats\n\n")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    match query() {
        Ok(text) => {
            // The protocol's closing lines are not a counter; another daemon does not know the question.
            let Some(counters) = text.strip_suffix("errno=0\n\n").filter(|text| !text.is_empty()) else {
                eprintln!(
                    "patronus-engine: what answers at {} is not patronus-engine",
                    socket.display()
                );
                return ExitCode::FAILURE;
            };
            print!("{counters}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!(
                "patronus-engine: no engine answers at {}: {error}",
                socket.display()
            );
            ExitCode::FAILURE
        }
    }
}
