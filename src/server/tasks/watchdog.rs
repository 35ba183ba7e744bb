//! Stops tasks that nobody runs any more.

use jiff::{SignedDuration, Timestamp};

use super::super::document::{self, text};
use super::super::refusal::Refusal;
use super::super::state::{Change, status_of};
use super::super::store::{Kind, Store};
use crate::task::Status;

/// A running task of which nothing was heard for longer is taken for dead.
pub const DEAD_AFTER: SignedDuration = SignedDuration::from_secs(7200);

/// Stops the dead tasks; gives their ids.
pub fn stop_dead_tasks(store: &Store, now: Timestamp) -> Result<Vec<String>, Refusal> {
    let is_dead = |task: &document::Document| {
        let heard = text(task, "last_update").and_then(document::time);
        status_of(task) == Status::InProgress
            && heard.is_none_or(|heard| now.duration_since(heard) > DEAD_AFTER)
    };
    // Looked for without holding up the writers, and looked at again before the change.
    let suspects = store.read(|t| Ok(t.all(Kind::Tasks)?.into_iter().filter(is_dead).count()))?;
    if suspects == 0 {
        return Ok(Vec::new());
    }
    store.write(|transaction| {
        let mut stopped = Vec::new();
        for mut task in transaction.all(Kind::Tasks)? {
            if !is_dead(&task) {
                continue;
            }
            let change = Change {
                to: Status::Stopped,
                reason: "Forced stop (non-responsive)",
                message: "Forced stop (non-responsive)",
                force: false,
            };
            change.apply(&mut task, now)?;
            let completed = document::iso(now).into();
            task.insert("completed".into(), completed);
            let id = text(&task, "id").unwrap_or_default().to_owned();
            transaction.put(Kind::Tasks, &id, &task)?;
            stopped.push(id);
        }
        Ok(stopped)
    })
}
