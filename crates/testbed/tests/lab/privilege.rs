//! Privileges for labs.

use super::this_test;

/// Runs a program without the right to create namespaces, whichever user runs the test.
const POWERLESS: [&str; 5] = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"];

/// Set in a program that was restarted in a user namespace.
const RESTARTED: &str = "SLUICE_LAB_RESTARTED";

const TEST: &str = "reach::everybody_reaches_everybody_with_its_own_address";

#[test]
fn a_user_gets_a_lab_in_a_user_namespace() {
    let [setpriv, flags @ ..] = POWERLESS;
    let probe =
        std::process::Command::new(setpriv).args(flags).args(["unshare", "-Urnm", "true"]).output().unwrap();
    let output = this_test(&POWERLESS, TEST).env_remove(RESTARTED).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if probe.status.success() {
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    } else {
        sluice_sys::skipped(
            "this kernel lets no user have a namespace; all that is tested is that it is said",
        );
        assert!(!output.status.success() && text.contains("run this as root"), "{text}");
    }
}

#[test]
fn where_the_kernel_refuses_the_error_says_what_helps() {
    // As if the program had been restarted without success.
    let output = this_test(&POWERLESS, TEST).env(RESTARTED, "1").output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("run this as root, or under `unshare -Urnm`"), "{text}");
}
