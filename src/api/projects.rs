//! The `projects` service.

use serde::Deserialize;
use serde_json::json;

use super::error::ApiError;
use super::retry::Patience;
use super::session::Session;

/// The full name of a project; empty where there is none.
pub async fn name(session: &Session, id: &str) -> Result<String, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        projects: Vec<Project>,
    }
    #[derive(Deserialize)]
    struct Project {
        #[serde(default)]
        name: String,
    }
    if id.is_empty() {
        return Ok(String::new());
    }
    let request = json!({"id": [id], "only_fields": ["name"], "search_hidden": true});
    let answer: Answer = session
        .call("projects.get_all", &request, Patience::Start)
        .await?;
    let project = answer.projects.into_iter().next();
    Ok(project.map(|project| project.name).unwrap_or_default())
}
