"""Pages: one file each, with everything inside."""

from cspsched.report.html.document import page as page
from cspsched.report.html.document import write_page as write_page
from cspsched.report.html.sections import Band as Band
from cspsched.report.html.sections import Section as Section
