pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
    pub remedy: String,
}
pub fn host_checks(_config: &super::Config) -> Vec<Check> {
    Vec::new()
}
