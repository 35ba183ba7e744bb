//! Which status may follow which, and what a change of status writes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::document::{self, Document, iso};
use super::refusal::Refusal;
use super::{USER_ID, document::text};
use crate::task::Status;

/// Whether the server lets a task go from `from` to `to` without force.
pub fn allowed(from: Status, to: Status) -> bool {
    use Status::*;
    let next: &[Status] = match from {
        Created => &[Queued, InProgress],
        Queued => &[Created, InProgress, Stopped],
        InProgress => &[Stopped, Failed, Created, Completed],
        Stopped => &[
            Closed, Created, Failed, Queued, InProgress, Published, Publishing, Completed,
        ],
        Closed => &[Created, Failed, Published, Publishing, Stopped],
        Failed => &[Created, Stopped, Published, Queued],
        Completed => &[Published, InProgress, Created],
        Publishing => &[Published],
        Published | Unknown => &[],
    };
    from == to || next.contains(&to)
}

/// The status that a task's document holds.
pub fn status_of(task: &Document) -> Status {
    task.get("status")
        .and_then(|s| serde_json::from_value(s.clone()).ok())
        .unwrap_or(Status::Unknown)
}

/// A change of status, as a caller asks for it.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub to: Status,
    pub reason: &'a str,
    pub message: &'a str,
    pub force: bool,
}

impl Change<'_> {
    /// Changes `task`; gives the fields that were written. Reading, checking and writing happen in
    /// one write transaction, so that of two callers the second sees what the first has done.
    pub fn apply(&self, task: &mut Document, now: Timestamp) -> Result<Document, Refusal> {
        let from = status_of(task);
        if !self.force && !allowed(from, self.to) {
            return Err(Refusal::no_such_change(from, self.to));
        }
        let stamp = iso(now);
        let mut fields = Document::new();
        fields.insert("status".into(), json!(self.to));
        fields.insert("status_reason".into(), json!(self.reason));
        fields.insert("status_message".into(), json!(self.message));
        for field in ["status_changed", "last_update", "last_change"] {
            fields.insert(field.into(), json!(stamp));
        }
        fields.insert("last_changed_by".into(), json!(USER_ID));
        if from == Status::InProgress && self.to != Status::InProgress {
            let ran = text(task, "started").and_then(document::time);
            let seconds = ran.map_or(0, |started| now.duration_since(started).as_secs().max(0));
            task.insert("active_duration".into(), json!(seconds));
        }
        document::set_fields(task, &fields);
        Ok(fields)
    }
}

/// Writes `value` under the dotted `field` of the task and into the answer's `fields`.
pub fn also(task: &mut Document, fields: &mut Document, field: &str, value: Value) {
    document::set_path(task, field, value.clone());
    fields.insert(field.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::*;

    const ALL: [Status; 10] = [
        Created, Queued, InProgress, Stopped, Publishing, Published, Closed, Failed, Completed,
        Unknown,
    ];

    #[test]
    fn the_table_of_changes() {
        // Rows and columns in the order of ALL; x: allowed.
        for (from, row) in [
            (Created, "xxx......."),
            (Queued, "xxxx......"),
            (InProgress, "x.xx...xx."),
            (Stopped, "xxxxxxxxx."),
            (Publishing, "....xx...."),
            (Published, ".....x...."),
            (Closed, "x..xxxxx.."),
            (Failed, "xx.x.x.x.."),
            (Completed, "x.x..x..x."),
            (Unknown, ".........x"),
        ] {
            for (to, mark) in ALL.into_iter().zip(row.chars()) {
                assert_eq!(allowed(from, to), mark == 'x', "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_change_empties_reason_and_message_and_force_skips_the_check() {
        let mut task = Document::new();
        for (field, value) in [
            ("status", "published"),
            ("status_reason", "old"),
            ("status_message", "stopping"),
        ] {
            task.insert(field.into(), json!(value));
        }
        let mut change = Change {
            to: InProgress,
            reason: "",
            message: "",
            force: false,
        };
        let refusal = change.apply(&mut task, Timestamp::now()).unwrap_err();
        assert_eq!((refusal.code, refusal.subcode), (400, 110));
        assert_eq!(text(&task, "status_message"), Some("stopping"));
        change.force = true;
        change.apply(&mut task, Timestamp::now()).unwrap();
        assert_eq!(status_of(&task), InProgress);
        assert_eq!(text(&task, "status_reason"), Some(""));
        assert_eq!(text(&task, "status_message"), Some(""));
    }
}
