//! Who answers on the control socket: what is only looked at is answered on the connection's own thread, the rest by the main thread.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use patronus_config::diff;
use patronus_observe::{Request, RequestError};
use serde::Serialize;
use serde_json::{Value, json};

use crate::known::Board;
use crate::message::{Code, Failure, Order};
use crate::server::Handler;
use crate::site_file;
use crate::view::Viewer;
use crate::wake::Desk;

/// Answers orders.
pub struct Answerer {
    board: Arc<Board>,
    desk: Desk,
    uapi_dir: PathBuf,
    /// Held while a plan is made: texts are large, and whoever may look may ask.
    planning: Mutex<()>,
}

impl Answerer {
    /// `uapi_dir` is where the engine's query socket is.
    pub fn new(board: Arc<Board>, desk: Desk, uapi_dir: &Path) -> Answerer {
        Answerer {
            board,
            desk,
            uapi_dir: uapi_dir.to_owned(),
            planning: Mutex::new(()),
        }
    }

    /// What a viewer of this moment says.
    fn view<T: Serialize>(
        &self,
        of: impl FnOnce(&Viewer<'_>) -> Result<T, Failure>,
    ) -> Result<Value, Failure> {
        let known = self.board.get();
        let said = of(&Viewer::new(&known, &self.uapi_dir)?)?;
        serde_json::to_value(said).map_err(|error| Failure::new(Code::System, error.to_string()))
    }

    /// The difference between what is in force and this text, or the site's file.
    fn plan(&self, text: Option<&str>) -> Result<Value, Failure> {
        let _one_at_a_time = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.board.get();
        let candidate = match text {
            Some(text) => site_file::understand(&known.file, text)?,
            None => site_file::load(&known.file)?,
        };
        let config = known.config.as_ref();
        let config = config.ok_or_else(|| Failure::new(Code::NoEngine, "nothing is in force yet"))?;
        let plan = diff(config, &candidate.config);
        Ok(json!({
            "changes": plan.changes,
            "needs_restart": plan.needs_restart,
            "text": plan.to_string(),
        }))
    }
}

impl Handler for Answerer {
    fn administrators(&self) -> String {
        let config = self.board.get().config.clone();
        config.map_or_else(String::new, |config| {
            config.control.admin_group.as_str().to_owned()
        })
    }

    fn handle(&self, order: Order) -> Result<Value, Failure> {
        match order {
            Order::Show { what } => Viewer::new(&self.board.get(), &self.uapi_dir)?.show(what),
            Order::Flows(filter) => Viewer::new(&self.board.get(), &self.uapi_dir)?.show_flows(&filter),
            Order::Quality { remote } => self.view(|viewer| viewer.quality(remote.as_deref())),
            Order::Plan { text } => self.plan(text.as_deref()),
            Order::Why { remote, class } => {
                self.view(|viewer| viewer.why(remote.as_deref(), class.as_deref()))
            }
            Order::WhyFlow(flow) => self.view(|viewer| viewer.why_flow(&flow)),
            Order::Decisions {
                remote,
                class,
                after,
                count,
            } => self.view(|viewer| viewer.decisions(remote.as_deref(), class.as_deref(), after, count)),
            order => self.desk.order(order),
        }
    }

    fn observe(&self, request: &str) -> Result<OwnedFd, Failure> {
        let wrong = |error: RequestError| Failure::new(Code::BadRequest, error.to_string());
        let lines = request.lines().take_while(|line| !line.is_empty());
        let request = Request::parse(lines).map_err(wrong)?;
        request.parsed_filter().map_err(wrong)?;
        Viewer::new(&self.board.get(), &self.uapi_dir)?.observe(&request)
    }
}
