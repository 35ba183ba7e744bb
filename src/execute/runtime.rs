//! What agents tell each other in the task's runtime, a map that the server keeps as one value.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::scheduler::Claimant;
pub use crate::api::tasks::{CLAIM, KILLED, said};
use crate::api::{ApiError, Session, tasks};

/// Who has it, in which start of the job and which step of that, for the how many-eth time.
pub const CLAIMANT: &str = "clearml_agent_claimant";
pub const ROUND: &str = "clearml_agent_round";
pub const STEP: &str = "clearml_agent_step";
pub const ATTEMPT: &str = "clearml_agent_attempt";
/// Why the last attempt was broken off, where its agent said so.
pub const PREEMPTED: &str = "clearml_agent_preempted";
/// The rank of several that failed first, and how.
pub const FAILED_RANK: &str = "clearml_agent_failed_rank";
/// The run that asks whether the task runs still; who runs it takes that away.
pub const ASKS: &str = "clearml_agent_asks";
/// The commit that the first of several ranks runs.
pub const COMMIT: &str = "clearml_agent_commit";

/// What stands there of a run that holds the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The run's id.
    pub claim: String,
    pub claimant: Option<Claimant>,
    pub attempt: u32,
}

impl Record {
    /// In the place of what an earlier run has left.
    pub fn begin(&self, runtime: &mut Map<String, Value>) {
        for old in [
            CLAIMANT,
            ROUND,
            STEP,
            PREEMPTED,
            FAILED_RANK,
            KILLED,
            ASKS,
            COMMIT,
        ] {
            runtime.remove(old);
        }
        self.put(runtime);
    }

    /// Once more: another's write has undone it.
    pub fn put(&self, runtime: &mut Map<String, Value>) {
        let mut put = |key: &str, value: String| runtime.insert(key.to_owned(), value.into());
        put(CLAIM, self.claim.clone());
        put(ATTEMPT, self.attempt.to_string());
        if let Some(claimant) = &self.claimant {
            put(CLAIMANT, claimant.id.clone());
            put(ROUND, claimant.round.to_string());
            if let Some(step) = &claimant.step {
                put(STEP, step.clone());
            }
        }
    }
}

/// The runtime of the task that this agent runs. Its changes come one after the other, since each reads
/// and writes all of it.
#[derive(Debug)]
pub struct Runtime {
    session: Arc<Session>,
    task: String,
    turn: Mutex<()>,
}

impl Runtime {
    pub fn of(session: Arc<Session>, task: &str) -> Arc<Self> {
        Arc::new(Self {
            session,
            task: task.to_owned(),
            turn: Mutex::default(),
        })
    }

    pub async fn add(&self, more: &[(&str, &str)]) -> Result<(), ApiError> {
        let add = |all: &mut Map<String, Value>| {
            for (name, value) in more {
                all.insert((*name).to_owned(), Value::from(*value));
            }
            !more.is_empty()
        };
        self.change(add).await.map(drop)
    }

    /// Changes it if what stands there allows that (see [`tasks::change_runtime`]).
    pub async fn change(
        &self,
        change: impl FnOnce(&mut Map<String, Value>) -> bool,
    ) -> Result<bool, ApiError> {
        let _turn = self.turn.lock().await;
        tasks::change_runtime(&self.session, &self.task, change).await
    }
}
