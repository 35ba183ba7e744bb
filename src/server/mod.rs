//! stub until the server branch is merged
#[derive(Debug, clap::Args)]
pub struct ServerArgs {}
pub mod demo {
    #[derive(Debug, clap::Args)]
    pub struct DemoArgs {}
}
