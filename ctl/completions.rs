//! `completions`: a script for a shell, made of the command line as [`Args`] describes it. Asks no daemon.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;

use crate::args::Args;
use crate::failure::Failure;
use crate::render;
use crate::terminal::Output;

/// What a program gets.
#[derive(Serialize)]
struct Completions {
    shell: String,
    script: String,
}

/// Prints the script.
pub(crate) fn run(shell: Shell, json: bool, out: &mut Output) -> Result<(), Failure> {
    let script = script(shell)?;
    let text =
        if json { render::json(&Completions { shell: shell.to_string(), script }) } else { script };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn script(shell: Shell) -> Result<String, Failure> {
    // Into memory first: the generators panic when they cannot write, and whoever reads may have had enough.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "tracecraftctl", &mut script);
    String::from_utf8(script)
        .map_err(|error| Failure::failed(format!("the script is no text: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::render::tests::golden;

    #[test]
    fn what_a_program_gets_is_the_documented_shape() {
        let script = "_tracecraftctl() {\n".to_owned();
        golden("completions.json", &render::json(&Completions { shell: "bash".into(), script }));
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_every_verb() {
        for shell in Shell::value_variants() {
            let script = script(*shell).unwrap();
            for verb in Args::command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell}: {}", verb.get_name());
            }
        }
    }
}
