//! Sending what earlier runs left, agents that were killed, or whose server was away to the end: their
//! output, and their tasks' status.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::shared::Shared;
use super::spool::{self, About, Ending};
use super::{Amount, Receipt, end_of, uploader};
use crate::api::tasks::{self, CLAIM, FinalStatus, KILLED, StatusNote, StatusWrite};
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
    /// The same, beside another run: a task whose job may come back for it keeps its status for a while.
    Neighbours(&'a str),
    All,
}

/// So long a job that was killed is waited for.
const JOB_COMES_BACK: Duration = Duration::from_secs(6 * 3600);

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
        Whose::Machine(machine) | Whose::Neighbours(machine) => Some(machine),
        Whose::All => None,
    };
    let (folder, of) = (dir.to_owned(), machine.map(str::to_owned));
    let paths = match blocking(move || spool::list(&folder, of.as_deref())).await {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for path in paths {
        let patient = matches!(whose, Whose::Neighbours(_)) && is_young(&path);
        let opened = path.clone();
        // All of it is read: that can take a while.
        let what = match blocking(move || spool::open_left(&opened)).await {
            Ok(None) => continue,
            Ok(Some(left)) => send_one(left, path.clone(), session, patient).await,
            Err(error) => What::Left {
                cause: error.to_string(),
            },
        };
        tell(Sent { path, what });
    }
    Ok(())
}

/// If the run of this machine that had `claim` knew how it ended and could not tell, the server is told now;
/// gives whether it was.
pub async fn tell_end_of(dir: &Path, machine: &str, claim: &str, session: &Arc<Session>) -> bool {
    let Some((path, _)) =
        spool::left_by(dir, machine, claim).filter(|(_, about)| about.ending.is_some())
    else {
        return false;
    };
    let opened = path.clone();
    match blocking(move || spool::open_left(&opened)).await {
        Ok(Some(left)) => {
            let sent = send_one(left, path, session, false).await;
            matches!(sent, What::Done { .. } | What::Nothing)
        }
        _ => false,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)?
}

fn is_young(path: &Path) -> bool {
    let changed = std::fs::metadata(path).and_then(|found| found.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < JOB_COMES_BACK))
}

/// `patient`: the status of a job's task is left to the job.
async fn send_one(left: spool::Left, path: PathBuf, session: &Arc<Session>, patient: bool) -> What {
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
            mark: about.mark.clone(),
        };
        uploader::run(shared.clone(), upload, about.fold).await;
    } else {
        shared.abandon();
    }
    if patient && about.comes_back && about.ending.is_none() {
        return What::Left {
            cause: "its job may come back for the task".into(),
        };
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
    let runs_by = standing.said(CLAIM);
    // An agent of another make does not change the claim, but it reports.
    let reported_on_by = standing.last_worker.as_deref();
    let nobody_else = reported_on_by.is_none_or(|worker| {
        worker == about.worker || Some(worker) == about.former_worker.as_deref()
    });
    if standing.status != Status::InProgress || runs_by != Some(claim.as_str()) || !nobody_else {
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
    if about.ending.is_none() && about.comes_back {
        // So that the job goes on with it all the same.
        let mark = |all: &mut Map<String, Value>| {
            let is_same = tasks::said(all, CLAIM) == Some(claim);
            if is_same {
                all.insert(KILLED.into(), claim.as_str().into());
            }
            is_same
        };
        if !tasks::change_runtime(session, &about.task, mark).await? {
            return Ok(None);
        }
    }
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
