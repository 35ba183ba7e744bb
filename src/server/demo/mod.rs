#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
