//! Causes of made-up courses.
