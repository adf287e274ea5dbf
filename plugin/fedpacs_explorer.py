# fedpacs plugin for Orthanc. Copyright (C) 2026 the fedpacs authors. SPDX-License-Identifier: GPL-3.0-or-later
"""What is added to Orthanc Explorer (jQuery Mobile): state and buttons on patient, study and series, one on the start page.

Text is set with .text(), never as HTML. Patient and series lead to a study: an opt-out covers the whole patient anyway.
"""

EXPLORER = """
(function() {
  function open(study) { window.open('../fedpacs/page' + (study ? '?study=' + encodeURIComponent(study) : '')); }
  function button(id, label, before, click) {
    $('<a>').attr('data-role', 'button').attr('data-icon', 'info').attr('data-theme', 'e').attr('href', '#')
      .addClass('fedpacs-button').addClass('fedpacs-' + id).text(label).insertBefore(before)
      .click(function(e) { e.preventDefault(); click(); });
  }
  function get(url, then, failed) { $.ajax({url: url, dataType: 'json', cache: false, success: then, error: failed}); }
  function study(level, then) {
    var id = $.mobile.pageData && $.mobile.pageData.uuid;
    if (!id) { return; }
    if (level === 'study') { then(id); }
    if (level === 'series') { get('../series/' + id, function(s) { then(s.ParentStudy); }); }
    if (level === 'patient') { get('../patients/' + id, function(p) { then(p.Studies[0]); }); }
  }
  function show(level) {
    var line = $('#fedpacs-state-' + level).text('');
    study(level, function(id) {
      get('../fedpacs/studies/' + id, function(s) {
        var text = 'Federation: ' + s.state + (s.reason ? ' (' + s.reason + ')' : '');
        if (s.rounds) { text += ', used in ' + s.rounds + ' round' + (s.rounds === 1 ? '' : 's'); }
        if (s.results && s.results.length) { text += ', ' + s.results.length + ' result(s) came back'; }
        line.text(text);
        var page = $('#' + level);
        page.find('.fedpacs-exclude').toggle(!s.patient_excluded);
        page.find('.fedpacs-include').toggle(!!s.patient_excluded);
      }, function() { line.text('Federation: the node does not answer'); });
    });
  }
  function change(level, action, question) {
    var reason = window.prompt(question);
    if (!reason || !reason.replace(/\\s/g, '')) { return; }
    study(level, function(id) {
      $.ajax({url: '../fedpacs/studies/' + id + '/' + action, type: 'POST', contentType: 'application/json',
        headers: {'X-Fedpacs': '1'}, data: JSON.stringify({reason: reason}), dataType: 'json',
        success: function() { show(level); },
        error: function(answer) {
          var told = 'the node does not answer';
          try { told = JSON.parse(answer.responseText).error || told; } catch (ignored) { }
          $('#fedpacs-state-' + level).text('Federation: nothing was changed: ' + told);
        }});
    });
  }
  $.each(['patient', 'study', 'series'], function(_, level) {
    $('#' + level).live('pagebeforecreate', function() {
      var before = $('#' + level + '-delete').parent().parent();
      $('<p>').attr('id', 'fedpacs-state-' + level).addClass('fedpacs-state').insertBefore(before);
      button('page', 'Federation: show in fedpacs', before, function() { study(level, open); });
      button('exclude', 'Exclude patient from federation', before, function() {
        change(level, 'exclude', 'Exclude this patient, with all past and future studies. Why? (no name or number)');
      });
      button('include', 'Include patient in federation', before, function() {
        change(level, 'include', 'Take this patient back into the federation. Why? (no name or number)');
      });
    });
    $('#' + level).live('pagebeforeshow', function() { show(level); });
  });
  $('#lookup').live('pagebeforecreate', function() {
    button('page', 'Federation', $('#lookup-result'), function() { open(); });
  });
})();
"""
