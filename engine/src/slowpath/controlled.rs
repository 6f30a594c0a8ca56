//! The slow path under control: sites that are published, and what becomes of them.

use super::SlowPath;
use crate::control::Published;
use crate::engine::Controlled;

impl SlowPath {
    /// Configures an engine that has just been put together as control has said.
    pub fn begin_under(&mut self, controlled: Controlled) -> Result<(), String> {
        let Controlled {
            mut control,
            site,
            content,
            ..
        } = controlled;
        let generation = site.generation();
        match self.begin_with(site) {
            Ok(()) => {
                control.applied(generation, content, 0, self.own_key());
                self.control = Some(control);
                Ok(())
            }
            Err(error) => {
                control.refused(generation, error.clone());
                Err(error)
            }
        }
    }

    /// Does what control asks for.
    pub(super) fn serve_control(&mut self) {
        // Taken out for the call: what is published is applied by this very object.
        let Some(mut control) = self.control.take() else {
            return;
        };
        control.service();
        if let Some(Published {
            generation,
            content,
            site,
        }) = control.take_published()
        {
            match site.and_then(|site| self.adopt(site)) {
                Ok(changes) => {
                    for change in &changes {
                        self.core.log().notice(format_args!("{change}"));
                    }
                    let log = self.core.log();
                    log.notice(format_args!("generation {generation} is in force"));
                    control.applied(generation, content, changes.len(), self.own_key());
                }
                Err(error) => {
                    let log = self.core.log();
                    log.error(format_args!("{error}"));
                    log.error(format_args!(
                        "generation {generation} is refused: the one of before stays in force"
                    ));
                    control.refused(generation, error);
                }
            }
        }
        self.control = Some(control);
    }

    /// The site's public key.
    fn own_key(&self) -> [u8; 32] {
        self.core.device().public_key().map_or([0; 32], |key| key.0)
    }
}
