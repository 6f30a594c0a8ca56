//! What the control process is asked: plan, apply, confirm, rollback, reload.

use std::path::Path;
use std::time::{Duration, Instant};

use patronus_control::client::Client;
use patronus_control::message::{Order, Topic};
use serde_json::Value;

use crate::options::Apply;
use crate::output::{Exit, Outcome, Output, Wrong, escaped};
use crate::supervise;

/// How long a new engine may take to come and to be told everything.
const RESTART: Duration = Duration::from_secs(30);

/// A connection to the control process.
pub fn connect(socket: &Path) -> Result<Client, Wrong> {
    Client::connect(socket).map_err(|failure| {
        let is_there = failure.code == patronus_control::message::Code::NotAllowed;
        let mut wrong = Wrong::from(failure);
        if !is_there {
            wrong.exit = Exit::NotRunning;
        }
        wrong
    })
}

/// `patronus plan`.
pub fn plan(output: Output, socket: &Path, file: Option<&Path>) -> Outcome {
    let text = match file {
        None => None,
        Some(file) => {
            // Looked at here, so that what is wrong is said of the file that was named.
            let text = patronus_config::read(file).map_err(|error| Wrong::config(&error))?;
            patronus_config::parse_file(file, &text).map_err(|error| Wrong::config(&error))?;
            Some(text)
        }
    };
    let plan = connect(socket)?.ask(Order::Plan { text })?;
    let mut said = changes(&plan);
    let restarts = plan["needs_restart"].as_array().map_or(&[][..], Vec::as_slice);
    for restart in restarts {
        let (process, why) = (text_of(&restart["process"]), text_of(&restart["why"]));
        said.push_str(&output.warn(&format!("needs a restart of the {process}: {why}\n")));
    }
    output.print(&plan, said)
}

/// `patronus apply` and `patronus reload`.
pub fn apply(output: Output, socket: &Path, options: &Apply) -> Outcome {
    let mut client = connect(socket)?;
    let before = summary(&mut client)?;
    let order = Order::Apply {
        confirm: options.confirm,
        restart: options.restart,
    };
    let done = client.ask(order)?;
    if options.restart {
        supervise::restart_engine(socket)?;
        wait_for_engine(&mut client, before["generation"].as_u64().unwrap_or(0))?;
        // An engine that ends leaves its interface to the next one, which may have another.
        let now = summary(&mut client)?;
        let [old, new] = [&before, &now].map(supervise::interface_in);
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            supervise::remove_interface(&old);
        }
    }
    let mut said = changes(&done);
    if done["engine"] != Value::Bool(true) {
        said.push_str(&output.warn("the engine is not running: it will be told when it does\n"));
    }
    if let Some(seconds) = options.confirm {
        let text = format!("confirm within {seconds} s with `patronus confirm`, or it goes back\n");
        said.push_str(&output.warn(&text));
    }
    output.print(&done, said)
}

/// `patronus confirm` and `patronus rollback`.
pub fn order(output: Output, socket: &Path, order: Order, said: &str) -> Outcome {
    let done = connect(socket)?.ask(order)?;
    output.print(&done, format!("{}{said}\n", changes_if_any(&done)))
}

/// The lines of a plan, or that there is nothing to do.
fn changes(plan: &Value) -> String {
    match changes_if_any(plan) {
        text if text.is_empty() => "nothing changes\n".to_owned(),
        text => text,
    }
}

fn changes_if_any(plan: &Value) -> String {
    escaped(text_of(&plan["text"]))
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn summary(client: &mut Client) -> Result<Value, Wrong> {
    let what = Topic::Summary;
    Ok(client.ask(Order::Show { what })?)
}

/// Waits until another engine has been told, which counts from the beginning.
fn wait_for_engine(client: &mut Client, before: u64) -> Outcome {
    let until = Instant::now() + RESTART;
    let mut was_gone = false;
    while Instant::now() < until {
        let summary = summary(client)?;
        let now = summary["generation"].as_u64().unwrap_or(0);
        was_gone |= summary["engine"] == Value::Bool(false) || now != before;
        if was_gone && now > 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Wrong::failed("no engine has come after the restart")
        .hint("`systemctl status patronus-engine` says why"))
}
