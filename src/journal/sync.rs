//! Sending what earlier runs left, agents that were killed, or whose server was away to the end: their
//! output, and their tasks' status.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::shared::Shared;
use super::spool::{self, About, Ending};
use super::{Amount, Receipt, end_of, uploader};
use crate::api::tasks::{self, CLAIM, FinalStatus, StatusNote, StatusWrite};
use crate::api::{ApiError, Session};
use crate::task::Status;

/// What became of one journal.
#[derive(Debug)]
pub struct Sent {
    pub path: PathBuf,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// The server has decided on all of it, and it is removed. `status`: what the task's was set to.
    Done {
        task: String,
        receipt: Receipt,
        status: Option<FinalStatus>,
    },
    /// There was nothing in it that a server should get; it is removed.
    Nothing,
    /// It is for another server.
    OtherServer { server: String },
    /// It cannot be read, or its task's status not be written.
    Left { cause: String },
}

/// Which journals to send.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// Those of this machine. A lock that an agent on another machine holds may not be seen here.
    Machine(&'a str),
    All,
}

/// Sends the journals in `dir` that nobody writes or sends, one after the other, and tells what became
/// of each. It waits for a server that is away: abandon it to stop; what was sent by then is
/// recorded. An agent that runs keeps its journal locked, and so does whoever sends one.
pub async fn send_left(
    dir: &Path,
    whose: Whose<'_>,
    session: &Arc<Session>,
    mut tell: impl FnMut(Sent),
) -> io::Result<()> {
    let machine = match whose {
        Whose::Machine(machine) => Some(machine),
        Whose::All => None,
    };
    let paths = match spool::list(dir, machine) {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for path in paths {
        let what = match spool::open_left(&path) {
            Ok(None) => continue,
            Ok(Some(left)) => send_one(left, path.clone(), session).await,
            Err(error) => What::Left {
                cause: error.to_string(),
            },
        };
        tell(Sent { path, what });
    }
    Ok(())
}

async fn send_one(left: spool::Left, path: PathBuf, session: &Arc<Session>) -> What {
    if let Some(About { server, .. }) = &left.about
        && server != session.host()
    {
        return What::OtherServer {
            server: server.clone(),
        };
    }
    let (shared, about) = Shared::of_left(left, path);
    let shared = Arc::new(shared);
    let Some(about) = about else {
        shared.abandon();
        end_of(&shared);
        return What::Nothing;
    };
    if about.log {
        let upload = uploader::Upload {
            session: session.clone(),
            task: about.task.clone(),
            worker: about.worker.clone(),
            mark: String::new(),
        };
        uploader::run(shared.clone(), upload, about.fold).await;
    } else {
        shared.abandon();
    }
    let status = match tell_status(session, &about).await {
        Ok(status) => status,
        Err(error) => {
            return What::Left {
                cause: format!("the task's status could not be written: {error}"),
            };
        }
    };
    match end_of(&shared) {
        receipt if receipt.spool.is_some() => What::Left {
            cause: "its end could not be read".into(),
        },
        receipt if receipt.wanted == Amount::default() && status.is_none() => What::Nothing,
        receipt => What::Done {
            task: about.task,
            receipt,
            status,
        },
    }
}

/// Sets the task's status if it still runs by that run's claim; `None`: there was no need to.
async fn tell_status(session: &Session, about: &About) -> Result<Option<FinalStatus>, ApiError> {
    let Some(claim) = &about.claim else {
        return Ok(None);
    };
    let Some(standing) = tasks::standing(session, &about.task).await? else {
        return Ok(None);
    };
    let runs_by = standing.runtime.get(CLAIM).and_then(|claim| claim.as_str());
    // An agent of another make does not change the claim, but it reports.
    let reported_on_by = standing.last_worker.as_deref();
    let nobody_else = reported_on_by.is_none_or(|worker| {
        worker == about.worker || Some(worker) == about.former_worker.as_deref()
    });
    if standing.status != Status::InProgress || runs_by != Some(claim) || !nobody_else {
        return Ok(None);
    }
    let killed = || {
        Ending {
        status: FinalStatus::Failed,
        reason: "the agent was killed (kill -9, no memory, or its machine went down) before it could tell \
                 how the script ended: nothing of this run is running any more; run it again"
            .into(),
    }
    };
    let Ending { status, reason } = about.ending.clone().unwrap_or_else(killed);
    let note = StatusNote {
        reason: &reason,
        message: &format!("Changed by clearml-agent {}", about.worker),
    };
    match tasks::finish(session, &about.task, status, note).await? {
        StatusWrite::Written => Ok(Some(status)),
        StatusWrite::NotFromHere { .. } => Ok(None),
    }
}
