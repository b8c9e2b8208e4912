//! Every way to reach an apiserver, for real.
