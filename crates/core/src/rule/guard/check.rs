//! What a guard names, checked at load.

use std::sync::Arc;

use cel::common::ast::operators::{CONDITIONAL, INDEX, LOGICAL_AND, LOGICAL_NOT, LOGICAL_OR};
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::common::types::CelDouble;

use super::library::OURS;
use super::{FUNCTIONS, GuardError, age_of};
use crate::signal::catalog::Catalog;
use crate::signal::sample::Signal;
use crate::suggest::nearest;

/// Checks names and arguments and makes integer literals doubles, on the way down.
pub(super) struct Checker<'a> {
    catalog: &'a Catalog,
    bound: Vec<String>,
    /// The signals that the expression names, each once.
    pub(super) signals: Vec<(Arc<str>, Signal)>,
    /// The ranks that it asks for by number, and of which signal.
    pub(super) ranks: Vec<(Arc<str>, i64)>,
    /// The signals whose age it asks for.
    pub(super) aged: Vec<Arc<str>>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(catalog: &'a Catalog) -> Self {
        Self { catalog, bound: Vec::new(), signals: Vec::new(), ranks: Vec::new(), aged: Vec::new() }
    }

    pub(super) fn check(mut self, expression: &mut IdedExpr) -> Result<Self, GuardError> {
        self.visit(expression)?;
        Ok(self)
    }

    fn visit(&mut self, e: &mut IdedExpr) -> Result<(), GuardError> {
        match &mut e.expr {
            Expr::Literal(LiteralValue::Int(i)) => {
                let double = CelDouble::from(*i.inner() as f64);
                e.expr = Expr::Literal(LiteralValue::Double(double));
                Ok(())
            }
            Expr::Literal(_) | Expr::Unspecified => Ok(()),
            Expr::Ident(name) => self.ident(name),
            Expr::Call(call) => {
                if let Some(age) = self.age(call)? {
                    e.expr = Expr::Ident(age);
                    return Ok(());
                }
                self.call(call)
            }
            Expr::Select(s) => self.visit(&mut s.operand),
            Expr::List(l) => l.elements.iter_mut().try_for_each(|e| self.visit(e)),
            Expr::Map(m) => m.entries.iter_mut().try_for_each(|e| self.entry(&mut e.expr)),
            Expr::Struct(s) => s.entries.iter_mut().try_for_each(|e| self.entry(&mut e.expr)),
            Expr::Comprehension(c) => {
                self.visit(&mut c.iter_range)?;
                let outer = self.bound.len();
                self.bound.extend([c.iter_var.clone(), c.accu_var.clone()]);
                self.bound.extend(c.iter_var2.clone());
                let inner = [&mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result];
                let checked = inner.into_iter().try_for_each(|e| self.visit(e));
                self.bound.truncate(outer);
                checked
            }
        }
    }

    fn entry(&mut self, entry: &mut EntryExpr) -> Result<(), GuardError> {
        match entry {
            EntryExpr::StructField(f) => self.visit(&mut f.value),
            EntryExpr::MapEntry(m) => {
                self.visit(&mut m.key)?;
                self.visit(&mut m.value)
            }
        }
    }

    fn ident(&mut self, name: &str) -> Result<(), GuardError> {
        if self.bound.iter().any(|b| b == name) || self.signals.iter().any(|(n, _)| **n == *name) {
            return Ok(());
        }
        let Some(signal) = self.catalog.signal_named(name) else {
            let near = nearest(name, self.catalog.names());
            return Err(GuardError::UnknownSignal { name: name.to_owned(), near });
        };
        self.signals.push((name.into(), signal));
        Ok(())
    }

    /// `age(load)`: the variable that stands for it.
    fn age(&mut self, call: &CallExpr) -> Result<Option<String>, GuardError> {
        let ("age", [IdedExpr { expr: Expr::Ident(name), .. }]) = (call.func_name.as_str(), &call.args[..])
        else {
            return Ok(None);
        };
        self.ident(name)?;
        self.aged.push(name.as_str().into());
        Ok(Some(age_of(name)))
    }

    fn call(&mut self, call: &mut CallExpr) -> Result<(), GuardError> {
        let name = &call.func_name;
        let is_operator = !name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_operator {
            let given = call.args.len();
            let Some((_, wanted)) = FUNCTIONS.iter().find(|(f, _)| f == name) else {
                let near = nearest(name, FUNCTIONS.iter().map(|(f, _)| *f));
                return Err(GuardError::UnknownFunction { name: name.clone(), near });
            };
            if given != *wanted || call.target.is_some() {
                return Err(GuardError::Arguments { name: name.clone(), wanted: *wanted, given });
            }
        }
        if let ("value" | "share", [signal, rank]) = (name.as_str(), &call.args[..])
            && let (Expr::Ident(signal), Expr::Literal(LiteralValue::Int(rank))) = (&signal.expr, &rank.expr)
        {
            self.ranks.push((signal.as_str().into(), *rank.inner()));
        }
        if !is_operator {
            call.func_name.insert_str(0, OURS);
        }
        // Keys of a signal are integers: `load[2]` must stay one.
        let literal_key = call.func_name == INDEX
            && matches!(call.args.last(), Some(IdedExpr { expr: Expr::Literal(_), .. }));
        if let Some(target) = &mut call.target {
            self.visit(target)?;
        }
        let visited = call.args.len() - usize::from(literal_key);
        call.args[..visited].iter_mut().try_for_each(|a| self.visit(a))
    }
}

/// Operators whose result may be true although an operand cannot be computed, or is false.
const LENIENT: [&str; 4] = [CONDITIONAL, LOGICAL_AND, LOGICAL_NOT, LOGICAL_OR];

pub(super) fn is_conjunction(e: &IdedExpr) -> bool {
    match &e.expr {
        Expr::Call(call) if call.func_name == LOGICAL_AND => call.args.iter().all(is_conjunction),
        _ => is_strict(e),
    }
}

fn is_strict(e: &IdedExpr) -> bool {
    match &e.expr {
        Expr::Literal(_) | Expr::Ident(_) => true,
        Expr::Select(s) => is_strict(&s.operand),
        Expr::Call(call) => {
            let parts = call.target.as_deref().into_iter().chain(&call.args);
            !LENIENT.contains(&call.func_name.as_str()) && parts.into_iter().all(is_strict)
        }
        // Macros, and what a guard hardly needs.
        _ => false,
    }
}
