//! `patronus`: what people type.

#![forbid(unsafe_code)]

mod ask;
mod check;
mod doctor;
mod drill;
mod flows;
mod import;
mod keys;
mod observe;
mod options;
mod output;
mod paths;
mod setup;
mod show;
mod supervise;
mod top;
mod why;

use std::process::ExitCode;

use clap::Parser;
use patronus_control::message::Order;

use crate::options::{Apply, Command, Options};
use crate::output::{Outcome, Output};

fn main() -> ExitCode {
    let options = Options::parse();
    let output = Output::new(options.json);
    match run(output, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => output.wrong(&wrong),
    }
}

fn run(output: Output, options: Options) -> Outcome {
    let socket = &options.socket;
    match options.command {
        Command::Init(init) => setup::init(output, init),
        Command::Invite(invite) => setup::invite(output, &invite),
        Command::Join(join) => setup::join(output, &join),
        Command::Import(import) => import::import(output, &import),
        Command::Schema => schema(output),
        Command::Up(up) => supervise::up(socket, &up),
        Command::Down => supervise::down(output, socket),
        Command::Check(site) => check::check(output, &site.file),
        Command::Plan { file } => ask::plan(output, socket, file.as_deref()),
        Command::Apply(apply) => ask::apply(output, socket, &apply),
        Command::Reload => ask::apply(output, socket, &Apply::default()),
        Command::Confirm => ask::order(output, socket, Order::Confirm, "confirmed"),
        Command::Rollback => ask::order(
            output,
            socket,
            Order::Rollback,
            "what was in force before is so again",
        ),
        Command::Show { what, flows } => show::show(output, socket, what.0, &flows),
        Command::Why(options) => why::why(output, socket, &options),
        Command::Top { remote, once } => top::top(output, socket, remote, once),
        Command::FailoverTest(options) if options.end => drill::end(output, socket, &options),
        Command::FailoverTest(options) => drill::drill(output, socket, &options),
        Command::Trace(options) => observe::trace(output, socket, &options),
        Command::Capture(options) => observe::capture(socket, &options),
        Command::Keygen { file } => keys::keygen(output, file.as_deref()),
        Command::Pubkey { file } => keys::pubkey(output, file.as_deref()),
        Command::Genpsk { file } => keys::genpsk(output, file.as_deref()),
        Command::Doctor(site) => doctor::doctor(output, &site.file),
    }
}

/// `patronus schema`.
fn schema(output: Output) -> Outcome {
    let text = patronus_config::json_schema();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    output.print(&value, text)
}
