//! `patronus-control`: the control process of a site.

#![forbid(unsafe_code)]

mod options;
mod sandbox;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use patronus_config::Config;
use patronus_control::confirmation::Store;
use patronus_control::control::{Control, Parts};
use patronus_control::decisions::Decisions;
use patronus_control::handler::Answerer;
use patronus_control::keep::Keeper;
use patronus_control::known::Board;
use patronus_control::notify::Notifier;
use patronus_control::{http, metrics, server, wake};
use tracing::{error, info};

use crate::options::{Action, Options};

/// The site's file is wrong.
const BAD_CONFIG: u8 = 3;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os().skip(1)) {
        Ok(Action::Run(options)) => options,
        Ok(Action::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("patronus-control: {message}");
            return ExitCode::from(2);
        }
    };
    log(&options);
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err((status, message)) => {
            error!("{message}");
            ExitCode::from(status)
        }
    }
}

fn log(options: &Options) {
    let lines = tracing_subscriber::fmt()
        .with_max_level(options.log)
        .with_target(false)
        .with_writer(std::io::stderr);
    // The journal and terminals have their own times and colours.
    let lines = lines.with_ansi(false).without_time();
    match options.log_json {
        true => lines.json().flatten_event(true).init(),
        false => lines.init(),
    }
}

fn run(options: &Options) -> Result<(), (u8, String)> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| (1, format!("cannot {what}: {error}"))
    };
    let signals = patronus_io::signal::termination().map_err(failed("catch signals"))?;
    let board = Arc::new(Board::default());
    let (desk, inbox) = wake::desk().map_err(failed("make a wake-up descriptor"))?;
    let (decisions, writer) = Decisions::open(&options.state);
    let (keeper, keeping) = Keeper::open(&options.state);
    let control = Control::new(Parts {
        file: options.site.clone(),
        engine: options.engine.clone(),
        store: Store::new(&options.state),
        decisions,
        keeper,
        inbox,
        board: Arc::clone(&board),
        signals,
        notifier: Notifier::from_env(),
    });
    let control = control.map_err(|failure| (BAD_CONFIG, failure.to_string()))?;
    // What is in force says so, whatever the file says by now.
    let services = control.config().control.clone();
    let socket = options.socket.clone().unwrap_or(services.socket);
    let listener = server::bind(&socket, services.group.as_str())
        .map_err(failed(&format!("listen at {}", socket.display())))?;
    let metrics = bind_metrics(control.config()).map_err(|message| (1, message))?;
    sandbox::enter().map_err(|message| (1, message))?;
    writer.start().map_err(failed("start a thread"))?;
    keeping.start().map_err(failed("start a thread"))?;
    let handler = Answerer::new(Arc::clone(&board), desk, &options.uapi_dir);
    server::serve(listener, Arc::new(handler)).map_err(failed("start a thread"))?;
    if let Some(listener) = metrics {
        let uapi_dir = options.uapi_dir.clone();
        let page = move || metrics::page(&board.get(), Path::new(&uapi_dir));
        http::serve(listener, page).map_err(failed("start a thread"))?;
    }
    info!(site = %options.site.display(), socket = %socket.display(), "serving");
    control.run().map_err(failed("wait"))
}

/// Where metrics are asked for, if they are.
fn bind_metrics(config: &Config) -> Result<Option<std::net::TcpListener>, String> {
    let Some(metrics) = &config.metrics else {
        return Ok(None);
    };
    let at = metrics.listen.get_ref().0;
    let listener = http::bind(at).map_err(|error| format!("cannot answer for metrics at {at}: {error}"))?;
    Ok(Some(listener))
}
