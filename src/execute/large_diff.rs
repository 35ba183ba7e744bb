//! Uncommitted changes that were too large for the task: the ClearML SDK leaves a note in their place
//! and the changes themselves as the artifact `auxiliary_git_diff`.

use url::Url;

use super::run::Run;
use crate::api::{Patience, tasks};
use crate::source;
use crate::task::{Artifact, Script, Task};

const ARTIFACT: &str = "auxiliary_git_diff";
/// A clone's artifact stands in the task that it was cloned from, or in that one's.
const ANCESTORS: usize = 5;

/// The script with its whole diff. Unchanged where nothing is missing, or where there is no such
/// artifact: the checkout then says so.
pub(super) async fn whole(run: &Run, script: &Script) -> Result<Script, String> {
    if !source::is_note_of_large_diff(&script.diff) {
        return Ok(script.clone());
    }
    let Some(artifact) = find(run).await? else {
        return Ok(script.clone());
    };
    run.console.say(format!(
        "The uncommitted changes are in the artifact {ARTIFACT}: {}",
        crate::secret::mask_url_password(&artifact.uri)
    ));
    let diff = read(run, &artifact.uri).await.map_err(|cause| {
        format!(
            "the task's uncommitted changes are in its artifact {ARTIFACT}, which cannot be read: \
             {cause}\n\
             Next: commit and push the changes and run the task again from there, or clear its \
             uncommitted changes to run the commit as it is"
        )
    })?;
    Ok(Script {
        diff,
        ..script.clone()
    })
}

async fn find(run: &Run) -> Result<Option<Artifact>, String> {
    let of = |task: &Task| {
        let artifacts = &task.execution.artifacts;
        artifacts
            .iter()
            .find(|artifact| artifact.key == ARTIFACT)
            .cloned()
    };
    let (mut found, mut parent) = (of(&run.task), run.task.parent.clone());
    for _ in 0..ANCESTORS {
        let (None, Some(id)) = (&found, parent.take()) else {
            break;
        };
        let task = tasks::get_by_id(&run.session, &id)
            .await
            .map_err(|error| error.to_string())?;
        if let Some(task) = task {
            (found, parent) = (of(&task), task.parent);
        }
    }
    Ok(found)
}

async fn read(run: &Run, uri: &str) -> Result<String, String> {
    let url = Url::parse(uri).map_err(|error| error.to_string())?;
    let bytes = match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| "not a path".to_owned())?;
            tokio::fs::read(path)
                .await
                .map_err(|error| error.to_string())?
        }
        "http" | "https" => {
            // The token is for ClearML's own servers alone.
            let own = ["api.files_server", "api.api_server"]
                .into_iter()
                .any(|key| {
                    let server = run.settings.config.text(key);
                    let server = server.and_then(|server| Url::parse(server.trim()).ok());
                    server.is_some_and(|server| server.origin() == url.origin())
                });
            run.session
                .download(&url, own, Patience::Start)
                .await
                .map_err(|error| error.to_string())?
        }
        other => return Err(format!("the agent reads no {other} storage")),
    };
    String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())
}
