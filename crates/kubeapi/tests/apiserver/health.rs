//! What is said about what is wrong.
